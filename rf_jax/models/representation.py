"""Representation tokens: their embedding and their head (paper, section 3.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rf_jax.models.layers import Dense, Table


class RepresentationEmbedding(nn.Module):
    """Identity embedding from a table of K + 1 rows (the last: begin) plus a learned 2D position.

    The position table is `frame` x `frame`; the pipeline refuses larger pictures.
    """

    codes: int
    frame: int
    width: int

    @nn.compact
    def __call__(self, codes: jax.Array, cells: jax.Array) -> jax.Array:
        """codes int32 [B, R] (-1: begin), cells int32 [B, R, 2] (-1: none) -> [B, R, D]."""
        identity = Table(self.codes + 1, self.width, name='identity')(
            jnp.where(codes < 0, self.codes, codes)
        )
        cell = jnp.clip(cells, 0, self.frame - 1)
        place = Table(self.frame**2, self.width, name='place')(
            cell[..., 0] * self.frame + cell[..., 1]
        )
        return identity + jnp.where(cells[..., :1] >= 0, place, 0.0)


class RepresentationHead(nn.Module):
    """Logits over the K codes, float32."""

    codes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(self.codes, name='logits')(x.astype(jnp.float32))
