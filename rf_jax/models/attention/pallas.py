"""A TPU kernel for attention with the mask of design rule 2, in linear memory (Pallas, Mosaic).

The algorithm is FlashAttention (arXiv 2205.14135, 2307.08691), made block-sparse: the tiles of a
row (block of queries x block of keys) that may have a visible pair form a list, over which the last
axis of the grid runs. The length of the list is a runtime value, so other tiles cost nothing.
Within a tile, pairs are masked by the integers; the mask is made once for all query heads of a
group.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rf_jax.models.attention import flash, masks
from rf_jax.models.attention import pallas_kernels as kernels

LANES = 128
TILES = 2**17  # longest list of tiles: half of the 1 MB of scalar memory
VMEM_BYTES = 48 * 2**20  # tiles of 512 x 512 and eight query heads per group need about half


@dataclass(frozen=True)
class Pallas:
    """Tiles of block_q x block_k, multiples of 128; `interpret` runs the kernel without a TPU."""

    block_q: int
    block_k: int
    interpret: bool = False

    def prepare(self, query: masks.Integers, key: masks.Integers):
        """Integers int32 [B, 4, padded L]; tile lists of forward and dq, and of dk and dv."""
        block_q, block_k = self.sizes(*query['segment'].shape, key['segment'].shape[1])
        may_see = masks.tiles(query, key, block_q, block_k)
        query, key = masks.filled(query, block_q), masks.filled(key, block_k)
        return {
            'query': jnp.stack([query[name] for name in masks.FIELDS], 1),
            'key': jnp.stack([key[name] for name in masks.FIELDS], 1),
            'by_query': masks.tile_list(may_see),
            'by_key': masks.tile_list(may_see.swapaxes(1, 2)),
        }

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        """q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] -> [B, Lq, H, Dh]; 0 if no key is visible."""
        rows, length, heads, head_dim = q.shape
        block_q, block_k = sizes = self.sizes(rows, length, k.shape[1])
        kv_heads = k.shape[2]
        q = _heads_first(q, block_q).reshape(rows, kv_heads, heads // kv_heads, -1, head_dim)
        k, v = _heads_first(k, block_k), _heads_first(v, block_k)
        out = _attend((*sizes, self.interpret), q, k, v, prepared)
        return out.reshape(rows, heads, -1, head_dim)[:, :, :length].swapaxes(1, 2)

    def sizes(self, rows: int, queries: int, keys: int) -> tuple[int, int]:
        """Block sizes up to the row, multiples of LANES; larger if the list gets too long."""
        lengths = [masks.blocks(length, LANES) * LANES for length in (queries, keys)]
        sizes = [min(self.block_q, lengths[0]), min(self.block_k, lengths[1])]
        while rows * math.prod(map(masks.blocks, lengths, sizes)) > TILES:
            shorter = sizes.index(min(sizes))
            sizes[shorter] *= 2
        return tuple(sizes)


def _heads_first(x: jax.Array, block: int) -> jax.Array:
    """[B, L, H, Dh] -> [B, H, L padded to blocks, Dh]."""
    extra = -x.shape[1] % block
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))


class _Call:
    """Block shapes and a pallas_call over the tiles of a list sorted by its `major` index."""

    def __init__(self, sizes, q, tiles, major):
        self.block_q, self.block_k, self.interpret = sizes
        self.rows, self.kv_heads, self.group, _, self.head_dim = q.shape
        self.tiles, self.major = tiles, major

    def _index(self, which, *after):
        """Index map of an array that is blocked along the queries or the keys."""
        longest = self.tiles['at'].shape[1]
        shift = 16 if which == self.major else 0

        def index(row, head, step, at, _):
            block = (at[row * longest + step] >> shift) & 0xFFFF
            return tuple({'row': row, 'head': head, 'block': block}.get(x, 0) for x in after)

        return index

    def integers(self, which):
        block = self.block_q if which == 'query' else self.block_k
        return pl.BlockSpec((None, 4, block), self._index(which, 'row', '', 'block'))

    def queries(self):
        shape = (None, None, self.group, self.block_q, self.head_dim)
        return pl.BlockSpec(shape, self._index('query', 'row', 'head', '', 'block', ''))

    def keys(self):
        shape = (None, None, self.block_k, self.head_dim)
        return pl.BlockSpec(shape, self._index('key', 'row', 'head', 'block', ''))

    def numbers(self):
        """One float32 per query and head."""
        shape = (None, None, self.group, self.block_q)
        return pl.BlockSpec(shape, self._index('query', 'row', 'head', '', 'block'))

    def __call__(self, kernel, name, inputs, in_specs, out_specs, out_shape, scratch):
        at, count = self.tiles['at'], self.tiles['count']
        # No CostEstimate: the cost depends on the length of the list, which is a runtime value; the
        # number of all pairs would mislead XLA's scheduler by an order of magnitude.
        return pl.pallas_call(
            partial(kernel, at.shape[1]),
            out_shape=out_shape,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                in_specs=in_specs,
                out_specs=out_specs,
                grid=(self.rows, self.kv_heads, count.max()),
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=('parallel', 'parallel', 'arbitrary'),
                vmem_limit_bytes=VMEM_BYTES,
            ),
            interpret=self.interpret,
            name=name,
        )(at.reshape(-1), count, *inputs)


def _forward(sizes, q, k, v, prepared):
    """q [B, Hkv, group, Lq, Dh], k and v [B, Hkv, Lk, Dh] -> (out, lse [B, Hkv, group, Lq])."""
    call = _Call(sizes, q, prepared['by_query'], 'query')
    queries, keys, numbers = call.queries(), call.keys(), call.numbers()
    shape = q.shape[2], sizes[0]
    return call(
        kernels.forward, 'attention',
        (prepared['query'], prepared['key'], q, k, v),
        [call.integers('query'), call.integers('key'), queries, keys, keys],
        [queries, numbers],
        [jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32)],
        [(*shape, 1), (*shape, 1), (*shape, q.shape[-1])],
    )  # fmt: skip


def _backward(sizes, kept, g):
    q, k, v, prepared, out, lse = kept
    delta = jnp.sum(out.astype(jnp.float32) * g.astype(jnp.float32), -1)
    inputs = prepared['query'], prepared['key'], q, k, v, g, lse, delta

    def run(kernel, name, major, like, scratch):
        call = _Call(sizes, q, prepared[f'by_{major}'], major)
        queries, keys, numbers = call.queries(), call.keys(), call.numbers()
        integers = [call.integers('query'), call.integers('key')]
        in_specs = [*integers, queries, keys, keys, queries, numbers, numbers]
        out_specs = [queries if major == 'query' else keys for _ in like]
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like]
        return call(kernel, name, inputs, in_specs, out_specs, shapes, scratch)

    head_dim = q.shape[-1]
    (dq,) = run(kernels.dq, 'attention_dq', 'query', [q], [(q.shape[2], sizes[0], head_dim)])
    dk, dv = run(kernels.dkv, 'attention_dkv', 'key', [k, v], [(sizes[1], head_dim)] * 2)
    return dq, dk, dv, None


_attend = flash.differentiable(_forward, _backward)
