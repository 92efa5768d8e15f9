"""Convolutions of images that are packed as patches, and the blocks of Wan's VAE.

A feature map is a tile of s x s places for each patch, [B, P, s, s, C]. Before a convolution, each
tile gets a border of one place from its neighbours, or zeros at the edge of its image: so images of
any size in one row are convolved exactly, in static shapes and without padding to a common size.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rf_jax.models.attention import Attention
from rf_jax.models.layers import Dense

_EPSILON = 1e-12  # least norm


def with_border(x: jax.Array, neighbours: jax.Array) -> jax.Array:
    """Tiles [B, P, s, s, C] with one place more on each side: [B, P, s + 2, s + 2, C].

    neighbours int32 [B, P, 3, 3], as `packed_images.neighbours` gives them.
    """
    own, first, last = slice(None), slice(0, 1), slice(-1, None)
    sides = (last, own, first)  # of the tile before, the tile itself and the one after

    def take(row: int, column: int) -> jax.Array:
        if (row, column) == (1, 1):
            return x
        part = x[:, :, sides[row], sides[column]]
        return jax.vmap(_tiles_at)(part, neighbours[:, :, row, column])

    rows = [jnp.concatenate([take(r, c) for c in range(3)], 3) for r in range(3)]
    return jnp.concatenate(rows, 2)


def _tiles_at(tiles: jax.Array, index: jax.Array) -> jax.Array:
    """tiles[index], and zeros where the index is len(tiles)."""
    return tiles.at[index].get(mode='fill', fill_value=0)


class Conv(nn.Module):
    """3 x 3 convolution with bias; `stride` 2: of the place, its right and its lower neighbours.

    Parameters: `kernel` [3, 3, C, F], the last time slice of Wan's causal kernel, as one frame has
    none before it; `bias` [F].
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, neighbours: jax.Array) -> jax.Array:
        shape = 3, 3, x.shape[-1], self.features
        kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,))
        bordered = with_border(x, neighbours)
        if self.stride == 2:
            bordered = bordered[:, :, 1:, 1:]
        y = jax.lax.conv_general_dilated(
            bordered.reshape(-1, *bordered.shape[2:]),
            kernel.astype(x.dtype),
            (self.stride, self.stride),
            'VALID',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
        return y.reshape(*x.shape[:2], *y.shape[1:]) + bias.astype(x.dtype)


class Norm(nn.Module):
    """x / |x| over the channels, times sqrt(C) and a learned scale; computed in float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.sum(x32 * x32, -1, keepdims=True))
        return (x32 / jnp.maximum(norm, _EPSILON) * x.shape[-1] ** 0.5 * scale).astype(x.dtype)


class Residual(nn.Module):
    """Two convolutions, each after norm and SiLU; a 1 x 1 one around them if C changes."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, neighbours: jax.Array) -> jax.Array:
        y = x
        for i in (1, 2):
            y = nn.silu(Norm(name=f'norm{i}')(y))
            y = Conv(self.features, name=f'conv{i}')(y, neighbours)
        if x.shape[-1] != self.features:
            x = Dense(self.features, True, name='conv_shortcut')(x)
        return x + y


class Middle(nn.Module):
    """Two residual blocks, between them attention of one head among the places of an image."""

    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array, neighbours: jax.Array, prepared) -> jax.Array:
        width = x.shape[-1]
        x = Residual(width, name='resnets_0')(x, neighbours)
        y = Norm(name='attention_norm')(x).reshape(len(x), -1, 1, width)
        y = Dense(3 * width, True, name='conv_qkv')(y)
        y = self.attention(*jnp.split(y, 3, -1), prepared)
        x = x + Dense(width, True, name='conv_proj')(y).reshape(x.shape)
        return Residual(width, name='resnets_1')(x, neighbours)
