"""Continuous representations: the encoder's features themselves are tokens, each predicted by
regression from those before it (an ablation of the paper, section 4; its example has a diffusion
head at each position).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import quantizer
from rf_jax.models.layers import Dense, Table
from rf_jax.models.representation import features
from rf_jax.models.representation.kind import Kind, Targets, learned_position, nothing_of_batch
from rf_jax.models.terms import Arrays, CrossEntropy, Term


class FeatureEmbedding(nn.Module):
    """A linear layer plus position; the begin token has a learned row of its own."""

    model: ConfigDict

    @nn.compact
    def __call__(self, tokens: jax.Array, cells: jax.Array) -> jax.Array:
        """tokens float32 [B, R, Denc], cells int32 [B, R, 2] (-1: begin) -> [B, R, D]."""
        width = self.model.backbone.width
        x = Dense(width, True, name='features')(tokens)
        # A begin of zeros is at the pole of a normalisation where text is dropped and it is all
        # there is to attend to: gradients grew a thousandfold a layer.
        begin = Table(1, width, name='begin')(jnp.zeros_like(cells[..., 0]))
        return jnp.where(cells[..., :1] < 0, begin, x + learned_position(self.model, cells))


class FeatureHead(nn.Module):
    """The next feature, by a linear layer."""

    model: ConfigDict

    @nn.compact
    def __call__(self, x: jax.Array, tapped: None = None) -> dict[str, jax.Array]:
        """x [B, R, D] -> predicted_features float32 [B, R, Denc]."""
        del tapped
        head = Dense(self.model.encoder.width, True, name='predicted')
        return {'predicted_features': head(x.astype(jnp.float32))}


def squared_error(outputs: Arrays, batch: Arrays) -> jax.Array:
    """Squared error of the next feature, mean over its values: [B, R].

    It is minimised by the mean of the possible next features, so predictions lack diversity.
    """
    return jnp.mean((outputs['predicted_features'] - batch['feature_targets']) ** 2, -1)


class Continuous(Kind):
    """Adds `feature_targets` float32 [B, R, Denc] to the batch. Features have mean square 1, which
    suits the linear layers that read and predict them.
    """

    tokens = True
    needs_features = True

    def embedding(self, model: ConfigDict) -> nn.Module:
        """Of features."""
        return FeatureEmbedding(model)

    def begin(self, model: ConfigDict, rows: int) -> jax.Array:
        """Zeros float32 [rows, Denc], in whose place the embedding has its own row."""
        return jnp.zeros((rows, model.encoder.width))

    def head(self, model: ConfigDict) -> nn.Module:
        """Predicts features."""
        return FeatureHead(model)

    def targets(self, config: ConfigDict, model: nn.Module) -> Targets:
        """Features of each group, by the EMA encoder."""

        def of_part(state, rows):
            count, patches, _ = rows['pixels'].shape
            z = jnp.zeros((count * patches, state.codebook.shape[1]))
            if patches:
                z, _ = features.group_features(config, model, state.ema, rows)
            z = z.reshape(count, -1, z.shape[-1]) * z.shape[-1] ** 0.5
            found = {'tokens': features.take(z, rows['input_group'], 0.0)}
            return found | {'feature_targets': features.take(z, rows['target_group'], 0.0)}

        return Targets(nothing_of_batch, of_part)

    def terms(self, cross_entropy: CrossEntropy) -> dict[str, Term]:
        """Counted where a token is followed by another."""
        del cross_entropy
        return {'representation': Term('representation_weight', squared_error)}

    def sample(self, prediction, place, keys, temperature, top_k) -> jax.Array:
        """As predicted, with the norm that features have in training, which guidance changes:
        float32 [B, Denc]. Nothing is random.
        """
        del place, keys, temperature, top_k
        return prediction.shape[-1] ** 0.5 * quantizer.normalise(prediction)

    def head_flops(self, config: ConfigDict) -> float:
        """One product each way for each token."""
        width, encoder = config.model.backbone.width, config.model.encoder.width
        return 2.0 * (2 * config.data.capacity.representation * width * encoder)


KIND = Continuous()
