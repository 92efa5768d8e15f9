"""Attention in plain XLA with memory linear in the length of the row, forward and backward.

The online softmax of FlashAttention (arXiv 2205.14135): logits exist for one tile at a time. They
are recomputed in the backward pass from the saved log-sum-exp.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from rf_jax.models.attention import masks
from rf_jax.models.attention.masks import MASKED

FLOOR = (
    MASKED / 2
)  # smallest maximum: exp(MASKED - FLOOR) is 0, so masked pairs need no second mask


@dataclass(frozen=True)
class Blockwise:
    """Skips tiles of block_q x block_k that have no visible pair in any row of the batch."""

    block_q: int
    block_k: int

    def prepare(self, query: masks.Integers, key: masks.Integers):
        """(integers of queries, of keys: int32 [B, padded L]; tiles bool [B, blocks, blocks])."""
        block_q, block_k = self._sizes(query['segment'].shape[1], key['segment'].shape[1])
        tiles = masks.tiles(query, key, block_q, block_k)
        query, key = masks.filled(query, block_q), masks.filled(key, block_k)
        return query, key, tiles

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        """q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] -> [B, Lq, H, Dh]; 0 if no key is visible."""
        rows, length, heads, head_dim = q.shape
        sizes = self._sizes(length, k.shape[1])
        kv_heads = k.shape[2]
        q = q.reshape(rows, length, kv_heads, heads // kv_heads, head_dim)
        out = _attend(
            sizes,
            _to_blocks(q, sizes[0]),
            _to_blocks(k, sizes[1]),
            _to_blocks(v, sizes[1]),
            prepared,
        )
        return _from_blocks(out, length).reshape(rows, length, heads, head_dim)

    def _sizes(self, queries: int, keys: int) -> tuple[int, int]:
        return min(self.block_q, queries), min(self.block_k, keys)


def _to_blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, L, ...] -> [blocks, B, block, ...], zeros after the end."""
    count = masks.blocks(x.shape[1], block)
    x = jnp.pad(x, ((0, 0), (0, count * block - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)


def _from_blocks(x: jax.Array, length: int) -> jax.Array:
    """The inverse: [blocks, B, block, ...] -> [B, L, ...]."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _pieces(sizes, prepared):
    """Integers by block, and the tiles that any row needs: all rows take the same branch."""
    query, key, tiles = prepared
    query, key = (
        {name: _to_blocks(x, size) for name, x in side.items()}
        for side, size in zip((query, key), sizes)
    )
    return query, key, tiles.any(0)


def _logits(q, k, query, key):
    """float32 [B, Hkv, group, q, k] of a tile, MASKED where the key is not visible."""
    logits = jnp.einsum('bqhgd,bkhd->bhgqk', q, k, preferred_element_type=jnp.float32)
    mask = masks.visible(query, key)[:, None, None]
    return jnp.where(mask, logits * q.shape[-1] ** -0.5, MASKED)


def _forward(sizes, q, k, v, prepared):
    """(out like q, log-sum-exp float32 [blocks, B, Hkv, group, block])."""
    query, key, needed = _pieces(sizes, prepared)

    def queries(block):
        q, query, needed = block

        def add(carry, tile):
            most, total, mean = carry
            k, v, key = tile
            logits = _logits(q, k, query, key)
            new = jnp.maximum(most, logits.max(-1))
            weights = jnp.exp(logits - new[..., None])
            fade = jnp.exp(most - new)
            mean = mean * fade[..., None] + jnp.einsum(
                'bhgqk,bkhd->bhgqd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32
            )
            return new, total * fade + weights.sum(-1), mean

        def step(carry, tile):
            *tile, needed = tile
            return jax.lax.cond(needed, add, lambda carry, _: carry, carry, tile), None

        rows, length, kv_heads, group, head_dim = q.shape
        shape = (rows, kv_heads, group, length)
        empty = jnp.full(shape, FLOOR), jnp.zeros(shape), jnp.zeros((*shape, head_dim))
        (most, total, mean), _ = jax.lax.scan(step, empty, (k, v, key, needed))
        total = jnp.where(total == 0, 1, total)  # a query without visible keys gives 0
        out = jnp.moveaxis(mean / total[..., None], 3, 1)
        return out.astype(q.dtype), most + jnp.log(total)

    return jax.lax.map(queries, (q, query, needed))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, q, k, v, prepared):
    return _forward(sizes, q, k, v, prepared)[0]


def _keep(sizes, q, k, v, prepared):
    out, lse = _forward(sizes, q, k, v, prepared)
    return out, (q, k, v, prepared, out, lse)


def _backward(sizes, kept, g):
    q, k, v, prepared, out, lse = kept
    query, key, needed = _pieces(sizes, prepared)
    delta = jnp.einsum('nbqhgd,nbqhgd->nbhgq', out, g, preferred_element_type=jnp.float32)
    scale = q.shape[-1] ** -0.5
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def queries(total, block):
        q, g, lse, delta, query, needed = block

        def gradients(dq, tile):
            k, v, key = tile
            weights = jnp.exp(_logits(q, k, query, key) - lse[..., None])
            dv = product('bhgqk,bqhgd->bkhd', weights.astype(g.dtype), g)
            pull = product('bqhgd,bkhd->bhgqk', g, v)
            pull = (weights * (pull - delta[..., None]) * scale).astype(q.dtype)
            dq = dq + product('bhgqk,bkhd->bqhgd', pull, k)
            return dq, (product('bhgqk,bqhgd->bkhd', pull, q), dv)

        def skip(dq, tile):
            k, v, _ = tile
            return dq, (jnp.zeros(k.shape), jnp.zeros(v.shape))

        def step(dq, tile):
            *tile, needed = tile
            return jax.lax.cond(needed, gradients, skip, dq, tile)

        dq, new = jax.lax.scan(step, jnp.zeros(q.shape), (k, v, key, needed))
        return jax.tree.map(jnp.add, total, new), dq.astype(q.dtype)

    start = jnp.zeros(k.shape), jnp.zeros(v.shape)
    (dk, dv), dq = jax.lax.scan(queries, start, (q, g, lse, delta, query, needed))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_keep, _backward)
