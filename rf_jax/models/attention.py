"""Rotary positions (Qwen3's, of three coordinates) and the forms of the attention product.

A form has two parts. `prepare(query, key)`, once a step: from the integers of `models.visibility`,
[B, Lq] and [B, Lk], to a tree of arrays with leading axis B. The call, once a layer: q
[B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] and that tree to [B, Lq, H, Dh], softmax in float32.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rf_jax.models.blockwise import MASKED, Blockwise
from rf_jax.models.flash import Pallas
from rf_jax.models.visibility import Integers, visible
from rf_jax.runtime.errors import choose, require


def rotary_angles(position: jax.Array, head_dim: int, sections, theta: float) -> jax.Array:
    """float32 [..., head_dim / 2] angles of positions float32 [..., 3] (order, row, column).

    Frequency j is theta^(-2j / head_dim) as in a one-coordinate rotary embedding, and turns by one
    of the coordinates; `sections` says how many frequencies each gets, dealt out in turn so that
    each coordinate has fast and slow ones. Equal coordinates (text) give the one-coordinate angles.
    """
    half = head_dim // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) * 2 / head_dim)
    return position[..., jnp.array(_deal(sections, half))] * frequency


def _deal(sections, half: int) -> list[int]:
    """Coordinate of each frequency: the one that lags most behind its share comes next."""
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


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention by the mask, softmax in float32; the reference form.

    q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh], mask bool [B, Lq, Lk] -> [B, Lq, H, Dh].
    """
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # Query heads of a group stand after one another, so that each product has one batch axis less
    # and reads k and v once: twice as fast as five-letter einsums in XLA's backward on CPU.
    q = q.reshape(rows, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(rows, kv_heads, group * length, head_dim)
    logits = jnp.einsum('bkqd,bskd->bkqs', q, k, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, group, 1))[:, None]
    weights = jax.nn.softmax(jnp.where(mask, logits * head_dim**-0.5, MASKED), axis=-1)
    out = jnp.einsum('bkqs,bskd->bkqd', weights.astype(v.dtype), v)
    out = out.reshape(rows, kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, head_dim)


@dataclass(frozen=True)
class Reference:
    """By a mask [B, Lq, Lk], with logits [B, H, Lq, Lk] in memory."""

    def prepare(self, query: Integers, key: Integers) -> jax.Array:
        return visible(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return attend(q, k, v, mask)


@dataclass(frozen=True)
class Cudnn:
    """cuDNN's fused attention through jax.nn: no logits in memory, but still a mask.

    The mask is bool [B, Lq, Lk], and cuDNN makes a bias of it in the type of q: 128 MB for a row
    of 8,192 tokens. It takes half precision only; float32 inputs take the reference. Odd lengths,
    which its backward refuses, are padded by one token.
    """

    implementation: str = 'cudnn'

    def prepare(self, query: Integers, key: Integers) -> jax.Array:
        return visible(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        if self.implementation == 'cudnn' and q.dtype == jnp.float32:
            return attend(q, k, v, mask)
        length = q.shape[1]

        def even(x, *axes):
            return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])

        q, k, v, mask = even(q, 1), even(k, 1), even(v, 1), even(mask[:, None], 2, 3)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=self.implementation)
        return out[:, :length]


@dataclass(frozen=True)
class ByLength:
    """The first of `choices` (form, least Lq, least Lk) that the shapes reach; else reference."""

    choices: tuple[tuple[object, int, int], ...]

    def _form(self, queries: int, keys: int):
        long = (f for f, least_q, least_k in self.choices if queries >= least_q and keys >= least_k)
        return next(long, Reference())

    def prepare(self, query: Integers, key: Integers):
        form = self._form(query['segment'].shape[1], key['segment'].shape[1])
        return form.prepare(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        return self._form(q.shape[1], k.shape[1])(q, k, v, prepared)


def _auto(c, platform: str) -> ByLength:
    """Short rows, or a few queries, take the reference: one product without the steps of a loop."""
    blockwise = Blockwise(c.block_q, c.block_k)
    if platform == 'tpu':
        return ByLength(((_pallas(c, platform), c.block_q, c.block_k),))
    if platform == 'cpu':
        return ByLength(((blockwise, c.block_q, 4097),))
    return ByLength(((blockwise, c.block_q, 8193), (Cudnn(), 128, 128)))


def _pallas(c, platform: str) -> Pallas:
    return Pallas(c.block_q, c.block_k, interpret=platform != 'tpu')


FORMS = {
    'auto': _auto,
    'reference': lambda c, platform: Reference(),
    'blockwise': lambda c, platform: Blockwise(c.block_q, c.block_k),
    'pallas': _pallas,
    'cudnn': lambda c, platform: Cudnn(),
}


def build(config, platform: str | None = None):
    """The form of `config.model.attention` for cpu, gpu or tpu; None: where this process runs.

    Raises UserError.
    """
    c, field = config.model.attention, 'model.attention'
    for name in ('block_q', 'block_k'):
        require(
            c[name] > 0 and c[name] % 128 == 0,
            f'{field}.{name}={c[name]} must be a positive multiple of 128',
        )
    make = choose(f'{field}.form', c.form, FORMS)
    return make(c, platform or jax.default_backend())
