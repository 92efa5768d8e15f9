"""The three kernels of `pallas.py`, each a step of the grid (row, key/value head, tile).

On-chip memory holds, for one tile: the integers query [4, q] and key [4, k], one key/value head k
and v [k, Dh], and all query heads of its group: q, out and their gradients [group, q, Dh], `lse`
and `delta` float32 [group, q]. `*_ref` accumulate in float32 until the last tile of an output
block.
"""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rf_jax.models.attention import masks
from rf_jax.models.attention.blockwise import FLOOR
from rf_jax.models.attention.masks import MASKED


def _product(a, b, over: tuple[int, int]):
    """float32 product of two matrices, summed over one axis of each."""
    dimensions = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _by_field(ref, expand):
    return {name: expand(ref[i]) for i, name in enumerate(masks.FIELDS)}


def _mask(query_ref, key_ref):
    """bool [q, k] of a tile."""
    return masks.rule(
        _by_field(query_ref, lambda x: x[:, None]), _by_field(key_ref, lambda x: x[None, :])
    )


def _mask_by_key(query_ref, key_ref):
    """bool [k, q] of a tile."""
    return masks.rule(
        _by_field(query_ref, lambda x: x[None, :]), _by_field(key_ref, lambda x: x[:, None])
    )


def _walk(at, count, longest: int):
    """(is this a tile to compute, the first, the last one of its output block)."""
    row, step = pl.program_id(0), pl.program_id(2)
    base, active = row * longest, step < count[row]

    def output(step):
        return at[base + step] >> 16

    here = output(step)
    first = (step == 0) | (output(jnp.maximum(step - 1, 0)) != here)
    last = (step == count[row] - 1) | (output(jnp.minimum(step + 1, longest - 1)) != here)
    return active, active & first, active & last


def forward(longest, at, count, query, key, q, k, v, out, lse, most_ref, total_ref, mean_ref):
    """The online softmax; outputs `lse`, the log-sum-exp, for the backward pass."""
    active, first, last = _walk(at, count, longest)
    scale = q.shape[-1] ** -0.5

    @pl.when(first)
    def _():
        most_ref[...] = jnp.full_like(most_ref, FLOOR)
        total_ref[...] = jnp.zeros_like(total_ref)
        mean_ref[...] = jnp.zeros_like(mean_ref)

    @pl.when(active)
    def _():
        mask = _mask(query, key)
        for head in range(q.shape[0]):
            logits = jnp.where(mask, _product(q[head], k[...], (1, 1)) * scale, MASKED)
            old = most_ref[head]
            new = jnp.maximum(old, logits.max(1, keepdims=True))
            weights = jnp.exp(logits - new)
            fade = jnp.exp(old - new)
            most_ref[head] = new
            total_ref[head] = total_ref[head] * fade + weights.sum(1, keepdims=True)
            mean = _product(weights.astype(v.dtype), v[...], (1, 0))
            mean_ref[head] = mean_ref[head] * fade + mean

    @pl.when(last)
    def _():
        for head in range(q.shape[0]):
            total = total_ref[head]
            total = jnp.where(total == 0, 1.0, total)  # a query without visible keys gives 0
            out[head] = (mean_ref[head] / total).astype(out.dtype)
            lse[head] = (most_ref[head] + jnp.log(total))[:, 0]


def dq(longest, at, count, query, key, q, k, v, g, lse, delta, dq, dq_ref):
    """`g` is the gradient of the output, `delta` its dot product with the output."""
    active, first, last = _walk(at, count, longest)
    scale = q.shape[-1] ** -0.5

    @pl.when(first)
    def _():
        dq_ref[...] = jnp.zeros_like(dq_ref)

    @pl.when(active)
    def _():
        mask = _mask(query, key)
        for head in range(q.shape[0]):
            logits = jnp.where(mask, _product(q[head], k[...], (1, 1)) * scale, MASKED)
            weights = jnp.exp(logits - lse[head][:, None])
            pull = _product(g[head], v[...], (1, 1)) - delta[head][:, None]
            pull = (weights * pull * scale).astype(k.dtype)
            dq_ref[head] += _product(pull, k[...], (1, 0))

    @pl.when(last)
    def _():
        dq[...] = dq_ref[...].astype(dq.dtype)


def dkv(longest, at, count, query, key, q, k, v, g, lse, delta, dk, dv, dk_ref, dv_ref):
    """Tiles are transposed, [k, q], so that no product needs a transpose."""
    active, first, last = _walk(at, count, longest)
    scale = q.shape[-1] ** -0.5

    @pl.when(first)
    def _():
        dk_ref[...] = jnp.zeros_like(dk_ref)
        dv_ref[...] = jnp.zeros_like(dv_ref)

    @pl.when(active)
    def _():
        mask = _mask_by_key(query, key)
        for head in range(q.shape[0]):
            logits = jnp.where(mask, _product(k[...], q[head], (1, 1)) * scale, MASKED)
            weights = jnp.exp(logits - lse[head][None, :])
            dv_ref[...] += _product(weights.astype(g.dtype), g[head], (1, 0))
            pull = _product(v[...], g[head], (1, 1)) - delta[head][None, :]
            pull = (weights * pull * scale).astype(q.dtype)
            dk_ref[...] += _product(pull, q[head], (1, 0))

    @pl.when(last)
    def _():
        dk[...] = dk_ref[...].astype(dk.dtype)
        dv[...] = dv_ref[...].astype(dv.dtype)
