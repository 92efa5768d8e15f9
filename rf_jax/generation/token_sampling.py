"""The representation tokens of an image, sampled one after another before its pixels (paper,
appendix A). What a token is, the model's representation kind says.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rf_jax.generation import guidance, kv_cache
from rf_jax.models.unified import Unified

Arrays = Mapping[str, jax.Array]


def _prefill(model: Unified, params, batch: Arrays):
    """Keys and values of the prompt."""
    x = model.bind({'params': params}).embed_text(batch['text_tokens'])
    return kv_cache.prefill(model, params, batch, x, (x.shape[1], 0, 0))[1]


def sample(model: Unified, options, params, batch: Arrays, contexts, keys):
    """(tokens [B, N, ...] with N = 0 for a kind that has none, cache of the prompt and the tokens).

    options: of `image_sampling`. `batch` has the rows of the contexts (text kept or not) one after
    another; keys [B], one an image.
    """
    if not model.kind.tokens:
        return jnp.zeros((keys.shape[0], 0), jnp.int32), _prefill(model, params, batch)
    begin = model.kind.begin(model.config, keys.shape[0])
    text, length = batch['text_tokens'].shape[1], batch['cells'].shape[1]
    weights = guidance.token_weights(options.guidance_representation)
    cache = kv_cache.grow(_prefill(model, params, batch), length)

    def following(carry, place):
        cache, token = carry
        bound = model.bind({'params': params})
        cell = jax.lax.dynamic_slice_in_dim(batch['cells'], place, 1, 1)
        tiled = jnp.concatenate([token] * len(contexts))[:, None]
        x = bound.embed_representation(tiled, cell)
        slot = jnp.full(tiled.shape[0], text + place)
        x, cache = kv_cache.one(model, params, batch, cache, slot, x, (0, 1, 0))
        found = bound.predict_representation(x)[:, 0]
        found = dict(zip(contexts, jnp.split(found, len(contexts))))
        guided = guidance.combine(found, weights)
        token = model.kind.sample(guided, place, keys, options.temperature, options.top_k)
        return (cache, token), token

    (cache, _), tokens = jax.lax.scan(following, (cache, begin), jnp.arange(length))
    return tokens[:-1].swapaxes(0, 1), cache  # the last token has no successor
