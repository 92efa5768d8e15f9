"""Rotary position embedding as in Qwen3, for three coordinates (order, row, column)."""

import jax
import jax.numpy as jnp


def rotary_angles(position: jax.Array, head_dim: int, sections, theta: float) -> jax.Array:
    """float32 [..., head_dim / 2] angles of positions float32 [..., 3] (order, row, column).

    Frequency j is theta^(-2j / head_dim) as in one-dimensional RoPE, and is multiplied by one of
    the coordinates; `sections` says how many frequencies each coordinate gets, interleaved so that
    each has high and low ones. Equal coordinates (text) give the angles of one-dimensional RoPE.
    """
    half = head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) * 2 / head_dim)
    return position[..., jnp.array(_interleaved(sections, half))] * frequency


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
