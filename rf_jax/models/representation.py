"""What stands before the pixels, and what is asked of it (paper, section 3.3 and its ablations).

Forcing is the paper's; the others are what it is compared with. Each kind is an embedding, which
makes tokens of the representation stream, and a head, whose outputs a loss of `training.losses`
reads.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rf_jax.models.layers import Dense, Head, Logits, Table
from rf_jax.runtime.errors import choose, require


def _place(config, cells: jax.Array) -> jax.Array:
    """Learned 2D position, a table of `frame` x `frame`; the pipeline refuses larger pictures.

    cells int32 [B, R, 2] (-1: none) -> [B, R, D].
    """
    frame, width = config.representation.position_grid, config.backbone.width
    cell = jnp.clip(cells, 0, frame - 1)
    place = Table(frame**2, width, name='place')(cell[..., 0] * frame + cell[..., 1])
    return jnp.where(cells[..., :1] >= 0, place, 0.0)


class CodeEmbedding(nn.Module):
    """Identity from a table of K + 1 rows (the last: begin) plus position."""

    config: object  # model

    @nn.compact
    def __call__(self, codes: jax.Array, cells: jax.Array) -> jax.Array:
        """codes int32 [B, R] (-1: begin), cells int32 [B, R, 2] (-1: none) -> [B, R, D]."""
        count, width = self.config.representation.codebook_size, self.config.backbone.width
        known = jnp.where(codes < 0, count, codes)
        return Table(count + 1, width, name='identity')(known) + _place(self.config, cells)


class CodeHead(nn.Module):
    """Logits over the K codes."""

    config: object  # model

    @nn.compact
    def __call__(self, x: jax.Array, tapped: None = None) -> dict[str, Logits]:
        """x [B, R, D] -> representation_logits [B, R, K]."""
        return {
            'representation_logits': Head(self.config.representation.codebook_size, name='logits')(
                x
            )
        }


class FeatureEmbedding(nn.Module):
    """A linear layer plus position; a row of its own is the begin."""

    config: object  # model

    @nn.compact
    def __call__(self, features: jax.Array, cells: jax.Array) -> jax.Array:
        """features float32 [B, R, Denc], cells int32 [B, R, 2] (-1: begin) -> [B, R, D]."""
        width = self.config.backbone.width
        x = Dense(width, True, name='features')(features)
        # A begin of zeros, where text is dropped all there is to read, is a normalisation's pole:
        # gradients grew a thousandfold a layer.
        begin = Table(1, width, name='begin')(jnp.zeros_like(cells[..., 0]))
        return jnp.where(cells[..., :1] < 0, begin, x + _place(self.config, cells))


class FeatureHead(nn.Module):
    """The next feature, by regression."""

    config: object  # model

    @nn.compact
    def __call__(self, x: jax.Array, tapped: None = None) -> dict[str, jax.Array]:
        """x [B, R, D] -> predicted_features float32 [B, R, Denc]."""
        head = Dense(self.config.encoder.width, True, name='predicted')
        return {'predicted_features': head(x.astype(jnp.float32))}


class NoEmbedding(nn.Module):
    """Rows have room for R = 0, but for the one that parameters are born of."""

    config: object  # model

    def __call__(self, nothing: jax.Array, cells: jax.Array) -> jax.Array:
        """Zeros [B, R, D]."""
        del nothing
        return jnp.zeros((*cells.shape[:2], self.config.backbone.width))


class NoHead(nn.Module):
    """No outputs."""

    config: object  # model

    def __call__(self, x: jax.Array, tapped: None = None) -> dict[str, jax.Array]:
        return {}


class AlignmentHead(nn.Module):
    """REPA's projector (arXiv 2410.06940, section 3.2) on the pixel tokens of one layer."""

    config: object  # model

    @nn.compact
    def __call__(self, x: jax.Array, tapped: jax.Array) -> dict[str, jax.Array]:
        """tapped [B, P, D] -> aligned_features float32 [B, P, Denc]."""
        width = 2 * self.config.backbone.width
        for name in ('up', 'query'):
            tapped = nn.silu(Dense(width, True, name=name)(tapped))
        head = Dense(self.config.encoder.width, True, name='predicted')
        return {'aligned_features': head(tapped.astype(jnp.float32))}


class Parts(NamedTuple):
    """Makers of the embedding and the head, inputs that they are born of, and the layer from
    whose tokens the head reads.
    """

    embedding: Callable[[], nn.Module]
    head: Callable[[], nn.Module]
    example: Callable[[], jax.Array]
    taps: int | None


def _kind(embedding, head, example: Callable, taps: Callable = lambda c: None):
    def parts(c) -> Parts:  # model
        make = partial(embedding, c), partial(head, c), partial(example, c)
        return Parts(*make, taps(c))

    return parts


def _codes(c) -> jax.Array:
    return jnp.array([[-1, 0]], jnp.int32)


KINDS = {
    'forcing': _kind(CodeEmbedding, CodeHead, _codes),
    'continuous': _kind(
        FeatureEmbedding, FeatureHead, lambda c: jnp.zeros((1, 2, c.encoder.width))
    ),
    'alignment': _kind(
        NoEmbedding, AlignmentHead, _codes, lambda c: c.representation.alignment_layer
    ),
    'none': _kind(NoEmbedding, NoHead, _codes),
}


def build(config) -> Parts:
    """Of `config.model.representation`. Raises UserError."""
    c, layers = config.model.representation, config.model.backbone.layers
    parts = choose('model.representation.kind', c.kind, KINDS)(config.model)
    require(
        parts.taps is None or 1 <= parts.taps <= layers,
        f'model.representation.alignment_layer={c.alignment_layer} must be 1 .. '
        f'model.backbone.layers={layers}',
    )
    return parts
