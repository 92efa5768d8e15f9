"""Captions and answers: an image and a question to text, token by token with a KV cache."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rf_jax.data.batch import Batch
from rf_jax.generation import kv_cache
from rf_jax.models.unified import Unified


def answer(
    model: Unified,
    params,
    batch: Batch,
    prompt_lengths: jax.Array,
    length: int,
    ends: Sequence[int],
) -> jax.Array:
    """Greedy answers.

    batch: rows of a Vision span and a Text span whose last `length` tokens are to be sampled
    (`inputs.answer_rows`); prompt_lengths int32 [B]: text tokens before them. Gives int32
    [B, length]. An answer ends at any of `ends`, and all tokens after it are the first of them.
    """
    text = batch['text_tokens'].shape[1]
    asked = text - length  # no prompt is longer
    bound = model.bind({'params': params})
    vision = bound.embed_vision(batch)
    words = bound.embed_text(batch['text_tokens'][:, :asked])
    x = jnp.concatenate([words, vision.astype(words.dtype)], 1)
    x, cache = kv_cache.prefill(model, params, batch, x, (x.shape[1], 0, 0), empty=(asked, length))
    rows = jnp.arange(prompt_lengths.shape[0])

    def most_likely(x):
        logits = model.bind({'params': params}).text_logits(x)
        return jnp.argmax(logits, -1).astype(jnp.int32)

    def decode(carry, i):
        cache, token, ended = carry
        x = model.bind({'params': params}).embed_text(token[:, None])
        slot = jnp.minimum(prompt_lengths + i, text - 1)
        x, cache = kv_cache.one(model, params, batch, cache, slot, x, (1, 0, 0))
        ended |= jnp.isin(token, jnp.array(ends))
        return (cache, jnp.where(ended, ends[0], most_likely(x)[:, 0]), ended), token

    first = most_likely(x[rows, prompt_lengths - 1])
    start = (cache, first, jnp.zeros(prompt_lengths.shape, bool))
    _, tokens = jax.lax.scan(decode, start, jnp.arange(length))
    return tokens.T
