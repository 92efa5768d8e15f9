"""Pure functions that run the model on part of a row with the rest in a key/value cache.

The rows are those of `data.layout`, so visibility and positions are training's. The cache holds a
row's tokens in stream order; what is not written yet stays invisible by order.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rf_jax.models import attention
from rf_jax.models.unified import Unified

Arrays = Mapping[str, jax.Array]
Cache = tuple[jax.Array, jax.Array]  # keys and values [layers, B, S, Hkv, Dh]
_RULE = ('segment', 'order', 'reach', 'block')


def part(batch: Arrays, start: int, stop: int) -> dict[str, jax.Array]:
    """The visibility integers and positions of tokens start .. stop of every row."""
    return {name: batch[name][:, start:stop] for name in (*_RULE, 'position')}


def pick(batch: Arrays, slot: jax.Array) -> dict[str, jax.Array]:
    """The same for one token a row: slot int32 [B] -> arrays [B, 1, ...]."""
    rows = jnp.arange(slot.shape[0])
    return {name: batch[name][rows, slot][:, None] for name in (*_RULE, 'position')}


def prefill(model: Unified, params, batch: Arrays, x: jax.Array, groups):
    """Runs the first tokens of the rows, [B, n, D]: (hidden, their keys and values)."""
    own = part(batch, 0, x.shape[1])
    mask = attention.visible(own, own)
    return model.apply({'params': params}, x, own['position'], mask, groups, None, method='run')


def grow(cache: Cache, length: int) -> Cache:
    """Room for `length` more tokens."""
    return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 0), (0, length), (0, 0), (0, 0))), cache)


def one(model: Unified, params, batch: Arrays, cache: Cache, slot: jax.Array, x, groups):
    """One token a row at cache place slot int32 [B], x [B, 1, D]: (hidden [B, 1, D], new cache)."""
    query = pick(batch, slot)
    size = cache[0].shape[2]
    cached = attention.visible(query, part(batch, 0, size))
    # Its own place holds nothing yet; the token itself stands after the cache.
    cached &= (jnp.arange(size) != slot[:, None])[:, None]
    mask = jnp.concatenate([cached, attention.visible(query, query)], 2)
    x, new = model.apply(
        {'params': params}, x, query['position'], mask, groups, cache, method='run'
    )
    rows = jnp.arange(slot.shape[0])
    cache = jax.tree.map(lambda a, n: a.at[:, rows, slot].set(n[:, :, 0]), cache, new)
    return x, cache


def after(model: Unified, params, batch: Arrays, cache: Cache, x: jax.Array, groups) -> jax.Array:
    """The tokens that stand after the cache, [B, n, D] -> hidden; the cache stays as it is."""
    size = cache[0].shape[2]
    own = part(batch, size, size + x.shape[1])
    mask = jnp.concatenate(
        [attention.visible(own, part(batch, 0, size)), attention.visible(own, own)], 2
    )
    x, _ = model.apply({'params': params}, x, own['position'], mask, groups, cache, method='run')
    return x
