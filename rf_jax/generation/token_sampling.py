"""What a drawing writes before its pixels, token by token (paper, appendix A), by
model.representation.kind.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from rf_jax.generation import guidance, kv_cache
from rf_jax.models import quantizer
from rf_jax.models.unified import Unified
from rf_jax.runtime.errors import choose

Arrays = Mapping[str, jax.Array]


def _prefill(model: Unified, params, batch: Arrays):
    """Keys and values of the prompt."""
    x = model.apply({'params': params}, batch['text_tokens'], method='embed_text')
    return kv_cache.prefill(model, params, batch, x, (x.shape[1], 0, 0))[1]


def _write(model, options, params, batch: Arrays, contexts, begin, pick):
    """Tokens one after another for rows stacked by context.

    `begin` [B, ...]: what stands at the begin place. `pick(guided prediction [B, ...], place)`
    gives the next. Gives (tokens [B, N, ...], cache of text and tokens).
    """
    text, length = batch['text_tokens'].shape[1], batch['cells'].shape[1]
    weights = guidance.token_weights(options.guidance_representation)
    cache = kv_cache.grow(_prefill(model, params, batch), length)

    def following(carry, place):
        cache, token = carry
        cell = jax.lax.dynamic_slice_in_dim(batch['cells'], place, 1, 1)
        tiled = jnp.concatenate([token] * len(contexts))[:, None]
        x = model.apply({'params': params}, tiled, cell, method='embed_representation')
        slot = jnp.full(tiled.shape[0], text + place)
        x, cache = kv_cache.one(model, params, batch, cache, slot, x, (0, 1, 0))
        found = model.apply({'params': params}, x, method='predict_representation')[:, 0]
        found = dict(zip(contexts, jnp.split(found, len(contexts))))
        token = pick(guidance.combine(found, weights), place)
        return (cache, token), token

    (cache, _), tokens = jax.lax.scan(following, (cache, begin), jnp.arange(length))
    return tokens[:-1].swapaxes(0, 1), cache  # the last token has no successor


def _codes(model, options, params, batch: Arrays, contexts, keys):
    """Sampled from the logits: int32 [B, N]."""

    def pick(logits, place):
        logits = guidance.top_k(logits / max(options.temperature, 1e-6), options.top_k)
        noise = jax.vmap(
            lambda k: jax.random.gumbel(jax.random.fold_in(k, place), logits.shape[1:])
        )
        code = jnp.argmax(logits + (noise(keys) if options.temperature else 0.0), -1)
        return code.astype(jnp.int32)

    begin = jnp.full(keys.shape[0], -1, jnp.int32)
    return _write(model, options, params, batch, contexts, begin, pick)


def _features(model, options, params, batch: Arrays, contexts, keys):
    """As predicted, with the norm that features have in training, which guidance would leave:
    float32 [B, N, Denc].
    """
    width = model.config.encoder.width
    begin = jnp.zeros((keys.shape[0], width))

    def pick(found, _):
        return width**0.5 * quantizer.normalise(found)

    return _write(model, options, params, batch, contexts, begin, pick)


def _nothing(model, options, params, batch: Arrays, contexts, keys):
    """int32 [B, 0]."""
    del options, contexts
    return jnp.zeros((keys.shape[0], 0), jnp.int32), _prefill(model, params, batch)


KINDS = {
    'forcing': _codes,
    'continuous': _features,
    'alignment': _nothing,
    'none': _nothing,
}


def build(config) -> Callable:
    """`write(model, options, params, batch, contexts, keys) -> (tokens, cache)`: `batch` has the
    rows of the contexts (text kept or not) one after another, `keys` are one a picture.
    """
    return choose('model.representation.kind', config.model.representation.kind, KINDS)
