"""The KV cache: pure functions that run the model on part of a row, the rest of it cached.

Rows are those of `data.layout`, so the attention rule and the positions are the same as in
training. A cache holds the tokens of a row in stream order; they are written in place where
it is carried through a loop or donated. Places that are not filled yet need no
mask of their own: the attention rule hides tokens of a later order.
"""

import jax
import jax.numpy as jnp

from rf_jax.data.batch import Batch
from rf_jax.models.attention.masks import FIELDS
from rf_jax.models.transformer import Cache
from rf_jax.models.unified import Unified

Lengths = tuple[int, int, int]  # tokens of the three expert groups


def fields_between(batch: Batch, start: int, stop: int) -> dict[str, jax.Array]:
    """Attention integers and positions of the tokens [start, stop) of every row."""
    return {name: batch[name][:, start:stop] for name in (*FIELDS, 'position')}


def fields_at(batch: Batch, slots: jax.Array) -> dict[str, jax.Array]:
    """The same for chosen tokens: slots int32 [B, n] -> arrays [B, n, ...]."""
    rows = jnp.arange(slots.shape[0])[:, None]
    return {name: batch[name][rows, slots] for name in (*FIELDS, 'position')}


def places(cache: Cache) -> int:
    """S: how many tokens of a row it has places for."""
    return jax.tree.leaves(cache)[0].shape[-2]


def empty(model: Unified, params, rows: int, length: int, where: jax.sharding.Sharding) -> Cache:
    """A cache of `length` places without tokens, each of its arrays with this sharding."""
    c, layers = model.config.backbone, params['backbone']['layers']
    shape, stacked = (rows, c.kv_heads, length, c.head_dim), not isinstance(layers, tuple)

    def pair(*shape: int):
        return tuple(jnp.zeros(shape, model.dtype, device=where) for _ in ('keys', 'values'))

    return pair(c.layers, *shape) if stacked else tuple(pair(*shape) for _ in layers)


def _run(model: Unified, params, x, own, keys, lengths: Lengths, cache: Cache | None, slots=None):
    """The tokens `own`, x [B, n, D], with these keys: what `Unified.run` gives."""
    prepared = model.attention.prepare(own, keys)
    return model.bind({'params': params}).run(x, own['position'], prepared, lengths, cache, slots)


def prefill(
    model: Unified,
    params,
    batch: Batch,
    x: jax.Array,
    lengths: Lengths,
    empty: tuple[int, int] = (0, 0),
):
    """Runs the first tokens of the rows, x [B, n, D]: (hidden, their keys and values).

    `empty`: (first, count); slots [first, first + count) are still empty, so x is without these
    tokens and the cache has zeros there.
    """
    first, count = empty
    parts = (
        fields_between(batch, 0, first),
        fields_between(batch, first + count, x.shape[1] + count),
    )
    own = {name: jnp.concatenate([part[name] for part in parts], 1) for name in parts[0]}
    x, cache = _run(model, params, x, own, own, lengths, None)
    return x, jax.tree.map(lambda a: _opened(a, first, count), cache)


def _opened(a: jax.Array, first: int, count: int) -> jax.Array:
    """[..., n, Dh] with `count` zeros before place `first`."""
    between = jnp.zeros((*a.shape[:-2], count, a.shape[-1]), a.dtype)
    return jnp.concatenate([a[..., :first, :], between, a[..., first:, :]], -2) if count else a


def grow(cache: Cache, length: int) -> Cache:
    """The cache with empty places for `length` more tokens."""
    return jax.tree.map(lambda a: _opened(a, a.shape[-2], length), cache)


def extend(
    model: Unified, params, batch: Batch, cache: Cache, slots: jax.Array, x, lengths: Lengths
):
    """Runs the tokens at slots int32 [B, n], x [B, n, D], which may depend on each other: (hidden,
    cache with them). A slot beyond the cache holds no token, and nothing is written for it.
    """
    size = places(cache)
    own = fields_at(batch, jnp.minimum(slots, size - 1))
    own['segment'] = jnp.where(slots < size, own['segment'], -2)
    return _run(model, params, x, own, fields_between(batch, 0, size), lengths, cache, slots)


def one(model: Unified, params, batch: Batch, cache: Cache, slot: jax.Array, x, lengths: Lengths):
    """Runs one token a row, x [B, 1, D], at place slot int32 [B]: (hidden, cache with it)."""
    return extend(model, params, batch, cache, slot[:, None], x, lengths)


def after(model: Unified, params, batch: Batch, cache: Cache, x, lengths: Lengths) -> jax.Array:
    """Runs the tokens that follow the cached ones, [B, n, D] -> hidden; the cache stays as is."""
    size = places(cache)
    own = fields_between(batch, size, size + x.shape[1])
    x, _ = _run(model, params, x, own, fields_between(batch, 0, size + x.shape[1]), lengths, cache)
    return x
