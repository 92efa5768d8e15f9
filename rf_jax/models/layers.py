"""What backbone and encoder share: dense layers, norms, tables, feed-forwards, and rotary positions
as in Qwen3, for three coordinates (order, row, column).
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

linear_init = nn.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal')


_keep = jax.checkpoint_policies.save_only_these_names
# What each layer saves for its backward pass; the rest is recomputed.
REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'feedforward': _keep('attended', 'projected', 'gate', 'up'),
    'gate': _keep('attended', 'projected', 'gate'),
    'projections': _keep('attended', 'projected'),
    'attention': _keep('attended'),
    'full': jax.checkpoint_policies.nothing_saveable,
}


def flat_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[..., D] x [D, F] -> [..., F], with all tokens flattened into one axis.

    On CPU, XLA's backward pass of a (B, N, D) x (D, F) product is about three times slower.
    """
    flat = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype)
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """Linear layer; parameters float32 `kernel` [D, F] and optionally `bias` [F]."""

    features: int
    use_bias: bool = False
    init: nn.initializers.Initializer = linear_init

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', self.init, (x.shape[-1], self.features))
        y = flat_product(x, kernel)
        if self.use_bias:
            y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(x.dtype)
        return y


class Logits(NamedTuple):
    """Unevaluated logits [B, n, V]: hidden states [B, n, D] and the kernel of a head [D, V].

    In training, logits of a large vocabulary are never computed for all tokens at once.
    """

    hidden: jax.Array
    kernel: jax.Array

    def whole(self) -> jax.Array:
        """float32 [B, n, V]."""
        flat = self.hidden.reshape(-1, self.hidden.shape[-1])
        return product(flat, self.kernel).reshape(*self.hidden.shape[:-1], -1)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, D] x [D, V] -> float32 [N, V], multiplied in the dtype of x."""
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


class Head(nn.Module):
    """Predicts one of V entries: [B, n, D] -> Logits; float32 `kernel` [D, V]."""

    entries: int

    @nn.compact
    def __call__(self, x: jax.Array) -> Logits:
        return Logits(x, self.param('kernel', linear_init, (x.shape[-1], self.entries)))


class RMSNorm(nn.Module):
    """Qwen3's norm over the last axis, computed in float32."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
        return (x32 * scale).astype(x.dtype)


class LayerNorm(nn.Module):
    """DINOv3's norm over the last axis with bias, computed in float32."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
        bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, -1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.epsilon)
        return (x32 * scale + bias).astype(x.dtype)


class Table(nn.Module):
    """Embedding table [K, D]; takes integer indices of any shape."""

    rows: int
    features: int

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        table = self.param('table', nn.initializers.normal(0.02), (self.rows, self.features))
        return jnp.take(table, index, axis=0, mode='clip')


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), Qwen3's feed-forward; with biases, that of DINOv3's ViT-H+."""

    feedforward: int
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = checkpoint_name(Dense(self.feedforward, self.use_bias, name='gate')(x), 'gate')
        up = checkpoint_name(Dense(self.feedforward, self.use_bias, name='up')(x), 'up')
        return Dense(x.shape[-1], self.use_bias, name='down')(nn.silu(gate) * up)


class GELU(nn.Module):
    """down(gelu(up x)) with biases, DINOv3's feed-forward in ViT-S/B/L; `approximate`: by the tanh
    formula, as in SigLIP2.
    """

    feedforward: int
    approximate: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up = checkpoint_name(Dense(self.feedforward, True, name='up')(x), 'up')
        return Dense(x.shape[-1], True, name='down')(nn.gelu(up, approximate=self.approximate))


def rotary_angles(position: jax.Array, head_dim: int, sections, theta: float) -> jax.Array:
    """float32 [..., head_dim / 2] angles of positions float32 [..., 3] (order, row, column).

    Frequency j is theta^(-2j / head_dim) as in one-dimensional RoPE, and is multiplied by one of
    the coordinates; `sections` says how many frequencies each coordinate gets, interleaved so that
    each has high and low ones. Equal coordinates (text) give the angles of one-dimensional RoPE.
    """
    coordinates = jnp.array(_interleaved(sections, head_dim // 2))
    return position[..., coordinates] * rotary_frequencies(head_dim, theta)


def rotary_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """float32 [head_dim / 2]: theta^(-2j / head_dim), with the bits of torch.

    The error of an angle is that of its frequency times the position, so in long rows pretrained
    weights need the frequencies they were trained with. As in transformers, exponent, power and
    reciprocal are each rounded to float32. The power is taken in float64 first: NumPy's float32
    power is an ulp off in one of six.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.float64(np.float32(theta)) ** exponents.astype(np.float64)
    return np.float32(1) / powers.astype(np.float32)


def _interleaved(sections, half: int) -> list[int]:
    """Coordinate of each frequency: always the one that is furthest behind its share."""
    given = [0, 0, 0]
    order = []
    for j in range(half):
        lag = [section * (j + 1) / half - got for section, got in zip(sections, given)]
        coordinate = lag.index(max(lag))
        given[coordinate] += 1
        order.append(coordinate)
    return order


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates [B, L, H, Dh] by float32 angles [B, L, Dh / 2]; halves are paired as in Qwen3."""
    cos = jnp.cos(angles)[:, :, None]
    sin = jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
