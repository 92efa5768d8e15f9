"""Pure functions that run the model on part of a row with the rest in a key/value cache.

The rows are those of `data.layout`, so visibility and positions are training's. The cache holds a
row's tokens in stream order; what is not written yet stays invisible by order.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rf_jax.models.attention.masks import FIELDS
from rf_jax.models.unified import Unified

Arrays = Mapping[str, jax.Array]
Cache = tuple[jax.Array, jax.Array]  # keys and values [layers, B, S, Hkv, Dh]


def part(batch: Arrays, start: int, stop: int) -> dict[str, jax.Array]:
    """The visibility integers and positions of tokens start .. stop of every row."""
    return {name: batch[name][:, start:stop] for name in (*FIELDS, 'position')}


def pick(batch: Arrays, slot: jax.Array) -> dict[str, jax.Array]:
    """The same for one token a row: slot int32 [B] -> arrays [B, 1, ...]."""
    rows = jnp.arange(slot.shape[0])
    return {name: batch[name][rows, slot][:, None] for name in (*FIELDS, 'position')}


def _run(model: Unified, params, x, own, before, groups, cache):
    """The tokens `own`, x [B, n, D], after those cached: (hidden, keys and values of `own`)."""
    keys = {name: jnp.concatenate([before[name], own[name]], 1) for name in FIELDS}
    seen = model.form.prepare(own, keys)
    return model.apply({'params': params}, x, own['position'], seen, groups, cache, method='run')


def prefill(model: Unified, params, batch: Arrays, x: jax.Array, groups):
    """Runs the first tokens of the rows, [B, n, D]: (hidden, their keys and values)."""
    own = part(batch, 0, x.shape[1])
    return _run(model, params, x, own, part(batch, 0, 0), groups, None)


def grow(cache: Cache, length: int) -> Cache:
    """Room for `length` more tokens."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, length), (0, 0), (0, 0))), cache)


def one(model: Unified, params, batch: Arrays, cache: Cache, slot: jax.Array, x, groups):
    """One token a row at cache place slot int32 [B], x [B, 1, D]: (hidden [B, 1, D], new cache)."""
    query = pick(batch, slot)
    size = cache[0].shape[2]
    before = part(batch, 0, size)
    # Its own place holds nothing yet, the token itself stands after the cache: no query is of -1.
    empty = jnp.arange(size) == slot[:, None]
    before['segment'] = jnp.where(empty, -1, before['segment'])
    x, new = _run(model, params, x, query, before, groups, cache)
    rows = jnp.arange(slot.shape[0])
    cache = jax.tree.map(lambda a, n: a.at[:, rows, slot].set(n[:, :, 0]), cache, new)
    return x, cache


def after(model: Unified, params, batch: Arrays, cache: Cache, x: jax.Array, groups) -> jax.Array:
    """The tokens that stand after the cache, [B, n, D] -> hidden; the cache stays as it is."""
    size = cache[0].shape[2]
    own = part(batch, size, size + x.shape[1])
    x, _ = _run(model, params, x, own, part(batch, 0, size), groups, cache)
    return x
