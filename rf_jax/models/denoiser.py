"""Ends of the denoiser: noisy patches and time in, clean patches out (JiT; paper, section 3.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.layers import Dense


class TimeEmbedding(nn.Module):
    """Sinusoids of t in [0, 1], computed in float32, then a two-layer SiLU MLP."""

    features: int
    width: int

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t float32 [...] -> [..., D]."""
        half = self.features // 2
        # From 1 to 1,000 radians over t in [0, 1].
        frequency = 1000.0 ** (jnp.arange(half, dtype=jnp.float32) / (half - 1))
        angles = t[..., None].astype(jnp.float32) * frequency
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        x = Dense(self.width, True, name='up')(x)
        return Dense(self.width, True, name='down')(nn.silu(x))


def sinusoids(cells: jax.Array, width: int) -> jax.Array:
    """Fixed 2D position embedding: cells int32 [..., 2] -> float32 [..., D].

    Half of it encodes the row, half the column (each as in Vaswani et al. 2017).
    """
    frequency = 10_000.0 ** -(jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
    angles = cells[..., None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*cells.shape[:-1], width)


class PatchIn(nn.Module):
    """Noisy patches [B, P, C], their times [B, P] and cells [B, P, 2] -> tokens [B, P, D]."""

    config: ConfigDict  # config.model.denoiser
    width: int

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, cells: jax.Array) -> jax.Array:
        x = z
        if self.config.bottleneck:
            x = Dense(self.config.bottleneck, name='bottleneck')(x)
        x = Dense(self.width, True, name='patch')(x)
        if self.config.sinusoids:
            x = x + sinusoids(cells, self.width).astype(x.dtype)
        return x + TimeEmbedding(self.config.time_embed_dim, self.width, name='time')(t).astype(
            x.dtype
        )


class PatchOut(nn.Module):
    """Tokens [B, P, D] -> predicted clean patches float32 [B, P, C]; initialised to zero."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Dense(self.channels, True, nn.initializers.zeros, name='patch')(
            x.astype(jnp.float32)
        )
