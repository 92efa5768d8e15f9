"""REPA (arXiv 2410.06940): no tokens; hidden states of the pixel tokens are aligned with the
encoder's features by a loss.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import quantizer
from rf_jax.models.layers import Dense
from rf_jax.models.representation import features
from rf_jax.models.representation.kind import Kind, Targets, nothing_of_batch
from rf_jax.models.terms import Arrays, CrossEntropy, Term
from rf_jax.runtime.errors import require


class AlignmentHead(nn.Module):
    """REPA's projector (section 3.2), a three-layer SiLU MLP on the pixel tokens of one layer."""

    model: ConfigDict

    @nn.compact
    def __call__(self, x: jax.Array, tapped: jax.Array) -> dict[str, jax.Array]:
        """tapped [B, P, D] -> aligned_features float32 [B, P, Denc]."""
        del x
        width = 2 * self.model.backbone.width
        for name in ('up', 'query'):
            tapped = nn.silu(Dense(width, True, name=name)(tapped))
        head = Dense(self.model.encoder.width, True, name='predicted')
        return {'aligned_features': head(tapped.astype(jnp.float32))}


def negative_cosine(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Equation 8: minus the cosine of a pixel token's projection and its feature, [B, P]."""
    found = outputs['aligned_features']
    found = found * jax.lax.rsqrt(jnp.sum(found**2, -1, keepdims=True) + 1e-12)
    return -jnp.sum(found * batch['patch_features'], -1)


class Alignment(Kind):
    """Adds `patch_features`, unit features float32 [B, P, Denc], to the batch."""

    needs_features = True

    def check(self, config: ConfigDict) -> None:
        """The layer must be one of the backbone's."""
        layer, layers = config.model.representation.alignment_layer, config.model.backbone.layers
        require(
            1 <= layer <= layers,
            f'model.representation.alignment_layer={layer} must be 1 .. '
            f'model.backbone.layers={layers}',
        )

    def head(self, model: ConfigDict) -> nn.Module:
        """The projector."""
        return AlignmentHead(model)

    def tapped_layer(self, model: ConfigDict) -> int:
        """As the config says."""
        return model.representation.alignment_layer

    def targets(self, config: ConfigDict, model: nn.Module) -> Targets:
        """Features of each patch, by the EMA encoder."""
        del config

        def of_part(state, rows):
            count, patches, _ = rows['pixels'].shape
            z = jnp.zeros((count, patches, state.codebook.shape[1]))
            if patches:
                z = features.patch_features(model, state.ema, rows)
            return {'tokens': rows['input_group'], 'patch_features': quantizer.normalise(z)}

        return Targets(nothing_of_batch, of_part)

    def terms(self, cross_entropy: CrossEntropy) -> dict[str, Term]:
        """Counted where pixels are."""
        del cross_entropy
        return {'representation': Term('pixel_weight', negative_cosine)}

    def head_flops(self, config: ConfigDict) -> float:
        """Three products for each pixel token."""
        width, encoder = config.model.backbone.width, config.model.encoder.width
        return 2.0 * (config.data.capacity.pixels * 2 * width * (3 * width + encoder))


KIND = Alignment()
