"""Picture and question to text, token by token with the same cache."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from rf_jax.generation import kv_cache
from rf_jax.models.unified import Unified

Arrays = Mapping[str, jax.Array]


def describe(model: Unified, params, batch: Arrays, heads, length: int, eos: int):
    """Greedy answers.

    batch: rows of a Vision span and a Text span whose last `length` tokens are to be written;
    heads int32 [B]: tokens before them. Gives int32 [B, length], `eos` from where an answer ends.
    """
    text = batch['text_tokens'].shape[1]
    vision = model.apply({'params': params}, batch, method='embed_vision')
    words = model.apply({'params': params}, batch['text_tokens'], method='embed_text')
    x = jnp.concatenate([words, vision.astype(words.dtype)], 1)
    # Places to be written are in the cache too, unseen: their order lies beyond every reach.
    x, cache = kv_cache.prefill(model, params, batch, x, (x.shape[1], 0, 0))
    rows = jnp.arange(heads.shape[0])

    def choose(x):
        logits = model.apply({'params': params}, x, method='text_logits')
        return jnp.argmax(logits, -1).astype(jnp.int32)

    def write(carry, i):
        cache, token, ended = carry
        x = model.apply({'params': params}, token[:, None], method='embed_text')
        slot = jnp.minimum(heads + i, text - 1)
        x, cache = kv_cache.one(model, params, batch, cache, slot, x, (1, 0, 0))
        ended |= token == eos
        return (cache, jnp.where(ended, eos, choose(x)[:, 0]), ended), token

    first = choose(x[rows, heads - 1])
    start = (cache, first, jnp.zeros(heads.shape, bool))
    _, tokens = jax.lax.scan(write, start, jnp.arange(length))
    return tokens.T
