"""Text, token by token: temperature, top-k and top-p of each row, and a chunk of decoding."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rf_jax.generation import kv_cache
from rf_jax.models.unified import Unified

NOTHING = -1  # in place of a token where a row is not decoded


class Rule(NamedTuple):
    """How each row is sampled; arrays [B]."""

    temperature: jax.Array  # float32; 0 is greedy
    top_k: jax.Array  # int32, the most likely tokens that remain; 0: all
    top_p: jax.Array  # float32 in (0, 1], probability that the tokens that remain have together
    seed: jax.Array  # uint32


def choose(logits: jax.Array, rule: Rule, place: jax.Array) -> jax.Array:
    """Tokens int32 [B] from logits [B, V]; `place` int32 [B] is where in the row each will stand.

    The randomness of a row depends on its own seed and place alone.
    """
    greedy = jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.lax.cond(
        (rule.temperature > 0).any(),
        lambda: jnp.where(rule.temperature > 0, _sampled(logits, rule, place), greedy),
        lambda: greedy,  # without sorting
    )


def _sampled(logits: jax.Array, rule: Rule, place: jax.Array) -> jax.Array:
    """`choose` for rows that are not greedy."""
    scaled = logits / jnp.maximum(rule.temperature, 1e-6)[:, None]
    order = jnp.argsort(-scaled, -1)
    sorted_ = jnp.take_along_axis(scaled, order, -1)
    probability = jax.nn.softmax(sorted_, -1)
    before = jnp.cumsum(probability, -1) - probability
    rank = jnp.arange(logits.shape[-1])
    most = jnp.where(rule.top_k > 0, rule.top_k, logits.shape[-1])
    kept = (rank < most[:, None]) & (before < rule.top_p[:, None])

    def sample(row, seed, place):
        key = jax.random.fold_in(jax.random.key(seed), place)
        return jax.random.categorical(key, row)

    at = jax.vmap(sample)(jnp.where(kept, sorted_, -jnp.inf), rule.seed, place)
    return jnp.take_along_axis(order, at[:, None], -1)[:, 0].astype(jnp.int32)


class Decoding(NamedTuple):
    """Rows between two chunks."""

    cache: kv_cache.Cache
    logits: jax.Array  # float32 [B, V] of the next token
    place: jax.Array  # int32 [B], where the next token will stand
    left: jax.Array  # int32 [B], tokens that may still be sampled; 0: the row is not decoded


def decode(
    model: Unified,
    params,
    fields: Mapping[str, jax.Array],
    start: Decoding,
    rule: Rule,
    forbidden: jax.Array,
    stops: tuple[int, ...],
    length: int,
) -> tuple[Decoding, jax.Array]:
    """Samples up to `length` tokens a row: (the state after them, tokens int32 [length, B]).

    A row ends at one of `stops`, which is given but neither run nor cached, or when nothing is
    left. `fields`: attention integers and positions of the rows, as `kv_cache.extend` takes them.
    `forbidden` bool [B, V]: tokens that are not sampled.
    """
    size = kv_cache.places(start.cache)

    def step(state: Decoding, _):
        logits = jnp.where(forbidden, -jnp.inf, state.logits)
        token = choose(logits, rule, state.place)
        live = state.left > 0
        stop = live & jnp.isin(token, jnp.array(stops))
        run = live & ~stop
        bound = model.bind({'params': params})
        x = bound.embed_text(jnp.where(run, token, 0)[:, None])
        slots = jnp.where(run, state.place, size)[:, None]
        x, cache = kv_cache.extend(model, params, fields, state.cache, slots, x, (1, 0, 0))
        after = model.bind({'params': params}).text_logits(x)[:, 0]
        moved = Decoding(
            cache,
            jnp.where(run[:, None], after, state.logits),
            state.place + run,
            jnp.where(stop, 0, state.left - run),
        )
        return moved, jnp.where(live, token, NOTHING)

    return jax.lax.scan(step, start, None, length)
