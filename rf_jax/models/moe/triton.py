"""Kernels for GPUs of the grouped matrix products in `grouped_matmul.py` (Pallas, Triton).

XLA's ragged product for NVIDIA GPUs is E dense products, with an array of all of them in memory:
69 GB for 65,536 rows of 2,048 and 128 experts of 768 (jax 0.10.2). Here each program computes a
tile of rows by columns for one group. A tile of rows that two groups share is computed for both,
and each writes its own rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from rf_jax.runtime.errors import require

ROWS = 64  # of a tile
LEAST, MOST = 16, 128  # width of a tile: sides of a product that Triton accepts, and what pays


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def product(x: jax.Array, w: jax.Array, sizes: jax.Array, interpret: bool = False) -> jax.Array:
    """x [M, D], w [E, D, F], sizes int32 [E] -> [M, F]; rows beyond the sum of sizes: undefined.

    D and F are multiples of 16. Raises UserError.
    """
    return _product(x, w, sizes, interpret, transposed=False)


def _keep(x, w, sizes, interpret):
    return product(x, w, sizes, interpret), (x, w, sizes)


def _backward(interpret, kept, g):
    x, w, sizes = kept
    dx = _product(g, w, sizes, interpret, transposed=True)
    return dx, _weight_gradient(x, g, w, sizes, interpret), None


product.defvjp(_keep, _backward)


def _width(size: int) -> int:
    """The largest tile that divides a dimension."""
    width = min(size & -size, MOST)
    require(
        width >= LEAST,
        f'experts of {size} values: the GPU kernel needs multiples of {LEAST} on a device; change '
        'model.backbone.width or moe.feedforward, or set model.backbone.moe.grouped_matmul=ragged',
    )
    return width


def _filled(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, -x.shape[0] % ROWS), (0, 0)))


def _ends(sizes: jax.Array):
    """(first row, row after the last) of each group, int32 [E]."""
    ends = jnp.cumsum(sizes, dtype=jnp.int32)
    return ends - sizes, ends


def _pairs(sizes: jax.Array, tiles: int) -> tuple[jax.Array, ...]:
    """Of each pair of a tile of rows and a group in it: the tile, the group, its first row and the
    row after its last, int32 [tiles + E]; pairs that there are not have no rows.
    """
    starts, ends = _ends(sizes)
    first = starts // ROWS
    count = jnp.where(sizes > 0, (ends - 1) // ROWS - first + 1, 0)
    after = jnp.cumsum(count)
    pair = jnp.arange(tiles + len(sizes), dtype=jnp.int32)
    group = jnp.searchsorted(after, pair, side='right').astype(jnp.int32)
    there = group < len(sizes)
    group = jnp.minimum(group, len(sizes) - 1)
    tile = jnp.where(there, first[group] + pair - (after - count)[group], 0).astype(jnp.int32)
    return tile, group, starts[group], jnp.where(there, ends[group], starts[group])


def _dot(a, b):
    return jax.lax.dot(a, b, preferred_element_type=jnp.float32)


def _product_kernel(width, step, transposed, x, w, tile, group, start, end, out):
    """A tile of rows of one group by `width` columns, in steps of the inner dimension."""
    pair, columns = pl.program_id(0), pl.ds(pl.program_id(1) * width, width)
    first = tile[pair] * ROWS
    rows, own = pl.ds(first, ROWS), group[pair]

    def add(n, total):
        inner = pl.ds(n * step, step)
        matrix = w[own, columns, inner].T if transposed else w[own, inner, columns]
        return total + _dot(x[rows, inner], matrix)

    # Of one type, as Triton wants the ends of a loop.
    none, steps = jnp.int32(0), jnp.int32(x.shape[1] // step)
    steps = jnp.where(end[pair] > start[pair], steps, none)
    total = jax.lax.fori_loop(none, steps, add, jnp.zeros((ROWS, width), jnp.float32))
    row = first + jnp.arange(ROWS)
    mask = ((row >= start[pair]) & (row < end[pair]))[:, None]
    plt.store(out.at[rows, columns], total.astype(out.dtype), mask=mask)


def _product(x, w, sizes, interpret: bool, transposed: bool) -> jax.Array:
    """[M, D] times [E, D, F], or times the transpose of [E, F, D]."""
    count, columns = x.shape[0], w.shape[1 if transposed else 2]
    x = _filled(x)
    tiles = x.shape[0] // ROWS
    width, step = _width(columns), min(64, _width(x.shape[1]))
    out = pl.pallas_call(
        partial(_product_kernel, width, step, transposed),
        grid=(tiles + len(sizes), columns // width),
        out_shape=jax.ShapeDtypeStruct((x.shape[0], columns), x.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name='gmm',
    )(x, w, *_pairs(sizes, tiles))
    return out[:count]


def _weight_gradient_kernel(down, across, x, g, start, end, out):
    """The sum over the rows of one group of x^T g, a tile of it."""
    group = pl.program_id(0)
    left = pl.ds(pl.program_id(1) * down, down)
    right = pl.ds(pl.program_id(2) * across, across)

    def add(n, total):
        row = n * ROWS + jnp.arange(ROWS)
        mask = ((row >= start[group]) & (row < end[group]))[:, None]
        rows = pl.ds(n * ROWS, ROWS)
        # Both: what belongs to no group is undefined, and may be NaN.
        a, b = (jnp.where(mask, each, 0) for each in (x[rows, left], g[rows, right]))
        return total + _dot(a.T, b)

    tiles = start[group] // ROWS, pl.cdiv(end[group], ROWS)
    empty = jnp.zeros((down, across), jnp.float32)
    out[group, left, right] = jax.lax.fori_loop(*tiles, add, empty).astype(out.dtype)


def _weight_gradient(x, g, w, sizes, interpret: bool) -> jax.Array:
    """x [M, D], g [M, F] -> [E, D, F]; zero for groups without rows."""
    x, g = _filled(x), _filled(g)
    down, across = min(64, _width(x.shape[1])), _width(g.shape[1])
    return pl.pallas_call(
        partial(_weight_gradient_kernel, down, across),
        grid=(len(sizes), x.shape[1] // down, g.shape[1] // across),
        out_shape=jax.ShapeDtypeStruct(w.shape, w.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name='tgmm',
    )(x, g, *_ends(sizes))
