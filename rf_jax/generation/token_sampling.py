"""The representation tokens of an image, sampled one after another before its pixels (paper,
appendix A). What a token is depends on the representation kind of the model.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rf_jax.generation import guidance, kv_cache
from rf_jax.models.unified import Unified

Arrays = Mapping[str, jax.Array]


def _prefill(model: Unified, params, batch: Arrays):
    """Keys and values of what comes before the image, with places for its tokens."""
    bound = model.bind({'params': params})
    x = bound.embed_text(batch['text_tokens'])
    if batch['vision_pixels'].shape[1]:
        x = jnp.concatenate([x, bound.embed_vision(batch).astype(x.dtype)], 1)
    understood, length = x.shape[1], batch['cells'].shape[1]
    if 'tokens' not in batch:
        cache = kv_cache.prefill(model, params, batch, x, (understood, 0, 0))[1]
        return kv_cache.grow(cache, length)
    # Earlier images have known tokens. Those of the new image are overwritten.
    known = bound.embed_representation(batch['tokens'], batch['cells'])
    x = jnp.concatenate([x, known.astype(x.dtype)], 1)
    return kv_cache.prefill(model, params, batch, x, (understood, length, 0))[1]


class Writing(NamedTuple):
    """Images between two of their tokens."""

    cache: kv_cache.Cache  # of all contexts: what comes before the images, and their tokens so far
    token: jax.Array  # [B, ...], the newest
    tokens: jax.Array  # [B, N + 1, ...]; the begin token where none has been sampled yet


def places(model: Unified, batch: Arrays) -> int:
    """N + 1: the tokens of an image, and one that has no successor; 0 for a kind without tokens."""
    if not model.kind.tokens:
        return 0
    if 'tokens' in batch:
        return batch['pixels'].shape[1] // model.config.representation.pool**2 + 1
    return batch['cells'].shape[1]


def begin(model: Unified, params, batch: Arrays, count: int) -> Writing:
    """`count` images before their first token; `batch` as in `sample`."""
    token = model.kind.begin(model.config, count)
    tokens = jnp.repeat(token[:, None], places(model, batch), 1)
    return Writing(_prefill(model, params, batch), token, tokens)


def write(
    model: Unified,
    options,
    params,
    batch: Arrays,
    weights: guidance.Weights,
    keys,
    state: Writing,
    first,
    last,
) -> Writing:
    """Samples the tokens of the places [first, last), which may be traced; the rest as `sample`."""
    rows = jnp.arange(batch['cells'].shape[0])
    before = batch['text_tokens'].shape[1] + batch['vision_pixels'].shape[1] // 4
    start = batch.get('start', jnp.zeros_like(rows))
    contexts = weights.contexts()

    def following(place, state):
        cache, token, tokens = state
        bound = model.bind({'params': params})
        cell = batch['cells'][rows, start + place][:, None]
        tiled = jnp.concatenate([token] * len(contexts))[:, None]
        x = bound.embed_representation(tiled, cell)
        x, cache = kv_cache.one(model, params, batch, cache, before + start + place, x, (0, 1, 0))
        found = bound.predict_representation(x)[:, 0]
        found = dict(zip(contexts, jnp.split(found, len(contexts))))
        guided = guidance.combine(found, weights.tokens)
        token = model.kind.sample(guided, place, keys, options.temperature, options.top_k)
        return Writing(cache, token, tokens.at[:, place].set(token))

    return jax.lax.fori_loop(first, last, following, state)


def sample(model: Unified, options, params, batch: Arrays, weights: guidance.Weights, keys):
    """(tokens [B, N, ...] with N = 0 for a kind that has none, cache of all before the pixels).

    options: `image_sampling.Options`. `batch` has the rows of the contexts of the weights one after
    another; keys [B], one per image. In a conversation with earlier generated images `batch` has
    their `tokens` [B, R, ...], as `embed_representation` takes them, and `start` int32 [B], the
    place of the new image in the representation stream.
    """
    state, length = begin(model, params, batch, keys.shape[0]), places(model, batch)
    if length:
        state = write(model, options, params, batch, weights, keys, state, 0, length)
    return state.tokens[:, :-1], state.cache  # the last token has no successor
