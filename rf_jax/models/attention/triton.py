"""A GPU kernel for attention with the mask of design rule 2, in linear memory (Pallas, Triton).

The algorithm of `pallas.py` in the form that suits a GPU: each program computes one block of
queries of one head and loops over the list of key blocks that it may see, so other tiles cost
nothing. The backward pass has one kernel for the queries and one for the keys. In float32, products
are TF32, Pallas' default for Triton, and heads of 128 need 131 kB of shared memory, more than GPUs
such as the L40S and the RTX 4090 have.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rf_jax.models.attention import flash, masks
from rf_jax.models.attention.blockwise import FLOOR
from rf_jax.models.attention.masks import MASKED

LEAST = 16  # sides of a product that Triton accepts; all are powers of two


@dataclass(frozen=True)
class Triton:
    """Tiles of block_q x block_k, powers of two; `interpret` runs the kernel without a GPU."""

    block_q: int = 64
    block_k: int = 64
    interpret: bool = False

    def prepare(self, query: masks.Integers, key: masks.Integers):
        """Integers int32 [B, 4, padded L]; lists of key blocks by query block, and the reverse."""
        may_see = jnp.asarray(masks.tiles(query, key, self.block_q, self.block_k))
        query, key = masks.filled(query, self.block_q), masks.filled(key, self.block_k)
        return {
            'query': jnp.stack([query[name] for name in masks.FIELDS], 1),
            'key': jnp.stack([key[name] for name in masks.FIELDS], 1),
            'by_query': _lists(may_see),
            'by_key': _lists(may_see.swapaxes(1, 2)),
        }

    def sizes(self, rows: int, queries: int, keys: int) -> tuple[int, int]:
        """Of the tiles, for any row."""
        return self.block_q, self.block_k

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        """q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] -> [B, Lq, H, Dh]; 0 if no key is visible."""
        length, head_dim = q.shape[1], q.shape[3]
        q = _padded(q, self.block_q)
        k, v = _padded(k, self.block_k), _padded(v, self.block_k)
        out = _attend(
            (self.block_q, self.block_k, head_dim**-0.5, self.interpret), q, k, v, prepared
        )
        return out[:, :length, :, :head_dim]


def _padded(x: jax.Array, block: int) -> jax.Array:
    """[B, L, H, Dh] with L a multiple of the block, and Dh a power of two."""
    head_dim = max(LEAST, pl.next_power_of_2(x.shape[3]))
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, head_dim - x.shape[3])))


def _lists(may_see: jax.Array) -> dict[str, jax.Array]:
    """For each of n: the m that it may see (int32 [B, n, m], then the others), and their number."""
    order = jnp.argsort(~may_see, axis=2, stable=True).astype(jnp.int32)
    return {'at': order, 'count': may_see.sum(2, keepdims=True, dtype=jnp.int32)}


def _product(a, b):
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _mask(query, key):
    """bool [q, k] from integers [4, q] and [4, k]."""
    return masks.rule(
        {name: query[n][:, None] for n, name in enumerate(masks.FIELDS)},
        {name: key[n][None, :] for n, name in enumerate(masks.FIELDS)},
    )


def _integers(ref, at=slice(None)):
    return [ref[n, at] for n in range(len(masks.FIELDS))]


def _forward_kernel(block, scale, at, count, query, key, q, k, v, out, lse):
    """The online softmax of a block of queries; `block`: of keys."""
    own, queries = q[...], _integers(query)

    def add(n, carry):
        most, total, mean = carry
        here = pl.ds(at[n] * block, block)
        logits = _product(own, k[here, :].T) * scale
        logits = jnp.where(_mask(queries, _integers(key, here)), logits, MASKED)
        new = jnp.maximum(most, logits.max(1))
        weights, fade = jnp.exp(logits - new[:, None]), jnp.exp(most - new)
        mean = mean * fade[:, None] + _product(weights.astype(v.dtype), v[here, :])
        return new, total * fade + weights.sum(1), mean

    rows = own.shape[0]
    empty = jnp.full(rows, FLOOR), jnp.zeros(rows), jnp.zeros(own.shape, jnp.float32)
    most, total, mean = jax.lax.fori_loop(0, count[0], add, empty)
    total = jnp.where(total == 0, 1.0, total)  # a query without visible keys gives 0
    out[...] = (mean / total[:, None]).astype(out.dtype)
    lse[...] = most + jnp.log(total)


def _dq_kernel(block, scale, at, count, query, key, q, k, v, g, lse, delta, dq):
    """`g` is the gradient of the output, `delta` its dot product with the output."""
    own, pulled, queries = q[...], g[...], _integers(query)
    sums, less = lse[...][:, None], delta[...][:, None]

    def add(n, total):
        here = pl.ds(at[n] * block, block)
        keys = k[here, :]
        logits = _product(own, keys.T) * scale
        mask = _mask(queries, _integers(key, here))
        weights = jnp.exp(jnp.where(mask, logits, MASKED) - sums)
        pull = weights * (_product(pulled, v[here, :].T) - less) * scale
        return total + _product(pull.astype(keys.dtype), keys)

    dq[...] = jax.lax.fori_loop(0, count[0], add, jnp.zeros(own.shape, jnp.float32)).astype(
        dq.dtype
    )


def _dkv_kernel(block, scale, at, count, query, key, q, k, v, g, lse, delta, dk, dv):
    """A block of keys, against all query heads of its group; `block`: of queries."""
    keys, values, own = k[...], v[...], _integers(key)

    def add(n, carry, head):
        dk, dv = carry
        here = pl.ds(at[n] * block, block)
        queries, pulled = q[here, head, :], g[here, head, :]
        logits = _product(queries, keys.T) * scale
        mask = _mask(_integers(query, here), own)
        weights = jnp.exp(jnp.where(mask, logits, MASKED) - lse[head, here][:, None])
        dv = dv + _product(weights.astype(pulled.dtype).T, pulled)
        pull = weights * (_product(pulled, values.T) - delta[head, here][:, None]) * scale
        return dk + _product(pull.astype(queries.dtype).T, queries), dv

    found = (jnp.zeros(keys.shape, jnp.float32),) * 2
    for head in range(q.shape[1]):
        found = jax.lax.fori_loop(0, count[0], partial(add, head=head), found)
    dk[...], dv[...] = found[0].astype(dk.dtype), found[1].astype(dv.dtype)


class _Specs:
    """Block shapes for a grid (block of `own`, row, head), `own` being queries or keys."""

    def __init__(self, own: str, block: int, q, k):
        heads = {'query': q.shape[2], 'key': k.shape[2]}
        self.block, self.length = block, {'query': q.shape[1], 'key': k.shape[1]}
        self.own, self.heads = own, heads[own]
        self.grid = (self.length[own] // block, q.shape[0], heads[own])
        self.group = heads['query'] // heads['key']

    def lists(self, longest: int):
        return [
            pl.BlockSpec((None, None, size), lambda i, row, head: (row, i, 0))
            for size in (longest, 1)
        ]

    def integers(self, side: str):
        if side == self.own:
            return pl.BlockSpec((None, 4, self.block), lambda i, row, head: (row, 0, i))
        return pl.BlockSpec((None, 4, self.length[side]), lambda i, row, head: (row, 0, 0))

    def vectors(self, side: str, head_dim: int):
        """[block, Dh] of its own side; of the other [L, Dh], or [L, group, Dh] of queries."""
        if side == self.own:
            shape = (None, self.block, None, head_dim)
            return pl.BlockSpec(shape, lambda i, row, head: (row, i, head, 0))
        if side == 'query':
            shape = (None, self.length[side], self.group, head_dim)
            return pl.BlockSpec(shape, lambda i, row, head: (row, 0, head, 0))
        shape = (None, self.length[side], None, head_dim)
        return pl.BlockSpec(shape, lambda i, row, head: (row, 0, head // self.group, 0))

    def numbers(self):
        """One float32 per query: [block], or [group, L] where the keys are its own."""
        if self.own == 'query':
            return pl.BlockSpec((None, None, self.block), lambda i, row, head: (row, head, i))
        shape = (None, self.group, self.length['query'])
        return pl.BlockSpec(shape, lambda i, row, head: (row, head, 0))


def _run(kernel, name, sizes, own, prepared, inputs, outputs):
    """`inputs`: q, k, v, and in the backward pass g, lse, delta; `outputs`: arrays of their shape
    and dtype, each of the side `own` or one number per query.
    """
    block_q, block_k, scale, interpret = sizes
    q, k, *_ = inputs
    block, other = (block_q, block_k) if own == 'query' else (block_k, block_q)
    specs, lists = _Specs(own, block, q, k), prepared[f'by_{own}']

    def spec(x, side):
        return specs.numbers() if x.ndim == 3 else specs.vectors(side, x.shape[3])

    sides = ('query', 'key', 'key', 'query', 'query', 'query')
    return pl.pallas_call(
        partial(kernel, other, scale),
        grid=specs.grid,
        in_specs=[
            *specs.lists(lists['at'].shape[2]),
            *map(specs.integers, ('query', 'key')),
            *map(spec, inputs, sides),
        ],
        out_specs=[spec(x, own) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name=name,
    )(lists['at'], lists['count'], prepared['query'], prepared['key'], *inputs)


def _forward(sizes, q, k, v, prepared):
    """(out like q, log-sum-exp float32 [B, H, Lq])."""
    numbers = jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)
    return _run(_forward_kernel, 'attention', sizes, 'query', prepared, (q, k, v), (q, numbers))


def _backward(sizes, kept, g):
    q, k, v, prepared, out, lse = kept
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), -1).swapaxes(1, 2)
    inputs = q, k, v, g, lse, delta
    (dq,) = _run(_dq_kernel, 'attention_dq', sizes, 'query', prepared, inputs, (q,))
    dk, dv = _run(_dkv_kernel, 'attention_dkv', sizes, 'key', prepared, inputs, (k, v))
    return dq, dk, dv, None


_attend = flash.differentiable(_forward, _backward)
