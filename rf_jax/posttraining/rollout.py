"""What a policy samples, with the probabilities it had: text, representation tokens, flow steps.

Without guidance and at temperature 1: the policy is the model's own conditional distribution, whose
log-probabilities the train step computes again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.data.batch import Batch
from rf_jax.generation import guidance, image_sampling, kv_cache, token_sampling
from rf_jax.models.unified import Unified
from rf_jax.training import flow

_STEPS = 2_000_000  # keys of the noise of steps, beyond those of tokens and patches


class Images(NamedTuple):
    """Sampled images. S: stochastic steps of the flow."""

    patches: jax.Array  # float32 [B, P, C] in [-1, 1]
    tokens: jax.Array  # int32 [B, N]
    token_log_probs: jax.Array  # float32 [B, N]
    z: jax.Array  # float32 [B, S + 1, P, Z], before each stochastic step and after the last
    t: jax.Array  # float32 [B, S + 1], their times
    step_log_probs: jax.Array  # float32 [B, S], mean over the values of an image


class Texts(NamedTuple):
    """Sampled texts; after the end of one all tokens are the first of `stops`."""

    tokens: jax.Array  # int32 [B, length]
    log_probs: jax.Array  # float32 [B, length], 0 after the end


class FlowPolicy(NamedTuple):
    """How the flow is sampled: `steps` of it, those in [first, last) stochastic."""

    steps: int
    first: int
    last: int
    step: Callable  # one of flow.STOCHASTIC
    level: float  # of its noise


def images(
    model: Unified,
    config: ConfigDict,
    policy: FlowPolicy,
    params,
    row: Batch,
    keys: jax.Array,
) -> Images:
    """One image a row. `row`: that of the whole context (`inputs.generation_rows`); keys [B]."""
    tokens, log_probs, cache = _tokens(model, params, row, keys)
    z, t, final, step_log_probs = _flow(model, config, policy, params, row, cache, keys)
    patches = model.bind({'params': params}).pixels(final, row)
    return Images(patches, tokens, log_probs, z, t, step_log_probs)


def _tokens(model: Unified, params, row: Batch, keys):
    """(tokens [B, N], their log-probabilities, cache of all before the pixels)."""
    length, text = row['cells'].shape[1], row['text_tokens'].shape[1]
    count = len(keys)
    writing = token_sampling.begin(model, params, row, count)
    if not length:
        return writing.tokens, jnp.zeros((count, 0)), writing.cache

    def following(place, state):
        cache, token, tokens, log_probs = state
        bound = model.bind({'params': params})
        x = bound.embed_representation(token[:, None], row['cells'][:, place][:, None])
        slot = jnp.full(count, text + place)
        x, cache = kv_cache.one(model, params, row, cache, slot, x, (0, 1, 0))
        logits = bound.predict_representation(x)[:, 0]
        token = model.kind.sample(logits, place, keys, 1.0, 0)
        taken = log_prob(logits, token)
        return cache, token, tokens.at[:, place].set(token), log_probs.at[:, place].set(taken)

    start = (writing.cache, writing.token, writing.tokens, jnp.zeros((count, length)))
    cache, _, tokens, log_probs = jax.lax.fori_loop(0, length, following, start)
    return tokens[:, :-1], log_probs[:, :-1], cache  # the last token has no successor


def _flow(model: Unified, config: ConfigDict, policy: FlowPolicy, params, row: Batch, cache, keys):
    """(z and t of the stochastic steps, the end of the flow, log-probabilities of these steps)."""
    pixels = row['pixel_counts'][:, 0] * config.data.patch_size**2
    times = image_sampling.times_of(config, image_sampling.Options(policy.steps), pixels)
    patches, count = row['pixels'].shape[1], len(keys)
    start = image_sampling.noise(model, config, {(guidance.ALL, True): row}, keys)
    real = row['pixel_weight']

    def predict(z, t):
        bound = model.bind({'params': params})
        x = bound.embed_patches(z, t, row['pixel_cells'])
        return bound.predict(kv_cache.after(model, params, row, cache, x, (0, 0, patches)))

    def at(i):
        return (jnp.broadcast_to(times[j][:, None], (count, patches)) for j in (i, i + 1))

    def ordinary(i, z):
        t, t_next = at(i)
        return flow.euler(lambda z, t: flow.velocity(predict(z, t), z, t, config.flow.t_eps), z, t,
                          t_next)  # fmt: skip

    def stochastic(z, i):
        t, t_next = at(i)
        mean, std = policy.step(
            predict(z, t), z, t, t_next, policy.level, config.flow.noise_scale, config.flow.t_eps
        )
        own = jax.vmap(lambda key: jax.random.fold_in(key, _STEPS + i))(keys)
        noise = image_sampling.unit_noise(own, patches, z.shape[-1])
        after = mean + std[..., None] * noise
        value = jnp.sum(flow.log_density(after, mean, std) * real, 1) / real.sum(1)
        return after, (z, value)

    z = jax.lax.fori_loop(0, policy.first, ordinary, start)
    z, (before, log_probs) = jax.lax.scan(stochastic, z, jnp.arange(policy.first, policy.last))
    kept = jnp.concatenate([before, z[None]]).swapaxes(0, 1)
    final = jax.lax.fori_loop(policy.last, policy.steps, ordinary, z)
    return kept, times[policy.first : policy.last + 1].T, final, log_probs.T


def texts(
    model: Unified,
    length: int,
    stops: tuple[int, ...],
    params,
    batch: Batch,
    prompt_lengths: jax.Array,
    keys: jax.Array,
) -> Texts:
    """A text of at most `length` tokens a row, after its prompt; any of `stops` ends it.

    `batch`, `prompt_lengths` int32 [B]: as `captioning.answer` takes them; keys [B].
    """
    text = batch['text_tokens'].shape[1]
    asked = text - length
    bound = model.bind({'params': params})
    vision = bound.embed_vision(batch)
    words = bound.embed_text(batch['text_tokens'][:, :asked])
    x = jnp.concatenate([words, vision.astype(words.dtype)], 1)
    x, cache = kv_cache.prefill(model, params, batch, x, (x.shape[1], 0, 0), empty=(asked, length))
    last = x[jnp.arange(len(keys)), prompt_lengths - 1]

    def sample(state, i):
        cache, x, ended = state
        logits = model.bind({'params': params}).text_logits(x[:, None])[:, 0]
        token = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, i), row))(
            keys, logits
        ).astype(jnp.int32)
        token = jnp.where(ended, stops[0], token)
        value = jnp.where(ended, 0.0, log_prob(logits, token))
        x = model.bind({'params': params}).embed_text(token[:, None])
        slot = jnp.minimum(prompt_lengths + i, text - 1)
        x, cache = kv_cache.one(model, params, batch, cache, slot, x, (1, 0, 0))
        return (cache, x[:, 0], ended | jnp.isin(token, jnp.array(stops))), (token, value)

    start = cache, last, jnp.zeros(len(keys), bool)
    _, (tokens, log_probs) = jax.lax.scan(sample, start, jnp.arange(length))
    return Texts(tokens.T, log_probs.T)


def log_prob(logits: jax.Array, token: jax.Array) -> jax.Array:
    """Of token [...] under logits [..., V]."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(token, 0)[..., None], -1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, -1)
