"""One optimizer step: quantize, noise, forward, three losses, update (paper, figure 2)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rf_jax.data.batch import Batch, StepBatch
from rf_jax.models import microbatches
from rf_jax.models.representation.kind import Targets
from rf_jax.models.unified import Unified
from rf_jax.runtime.rng import random_key
from rf_jax.training import ema, flow, losses, optimizer
from rf_jax.training.cross_entropy import CrossEntropy
from rf_jax.training.state import State


def add_noise(
    config: ConfigDict,
    model: Unified,
    params,
    key: jax.Array,
    batch: Batch,
    part: microbatches.Part = microbatches.WHOLE,
) -> StepBatch:
    """Clean patches or latents x, their times t (one per image) and the noisy z_t, as batch
    entries, and the noise that the space adds for itself.

    `batch` holds the rows of `part`, which get the same values as in the whole batch.
    """
    c = config.flow
    time_key, noise_key = jax.random.split(key)
    counts = batch['pixel_counts']
    shape = counts.shape[0] * part.count, counts.shape[1]
    t = part.take(flow.sample_times(time_key, shape, c.time_mean, c.time_std))
    t = flow.shift(t, flow.shift_of(counts * config.data.patch_size**2, c.shift, c.base_pixels))
    t = jnp.take_along_axis(t, jnp.maximum(batch['pixel_image'], 0), axis=1)
    x = model.bind({'params': params}).clean(batch)
    z = flow.path(x, c.noise_scale * part.normal(noise_key, x.shape), t)
    own = model.space.noise(jax.random.fold_in(key, 2), part, x.shape)
    return {'x': x, 't': t, 'z': z} | own


def prepare(find_targets: Targets, state: State, batch: Batch):
    """The batch with what needs all its rows, the new codebook, and metrics of the targets."""
    found, codebook, metrics = find_targets.of_batch(state, batch)
    live = (batch['segment'] > 0).astype(jnp.float32)
    return dict(batch) | found | {'live': live}, codebook, metrics


def complete(
    config: ConfigDict,
    model: Unified,
    find_targets: Targets,
    state: State,
    batch: StepBatch,
    part: microbatches.Part = microbatches.WHOLE,
) -> StepBatch:
    """The prepared rows of a part with their own targets, times and noise."""
    key = random_key(config.seed, 'noise', state.step)
    noise = add_noise(config, model, state.params, key, batch, part)
    return dict(batch) | find_targets.of_part(state, batch) | noise


def loss_function(config: ConfigDict, model: Unified, terms, weights=None) -> Callable:
    """`loss(params, batch, counts) -> (loss, metrics)` of completed rows, a batch or a part of it.

    `counts` are those of the whole batch, so the losses of its parts add up to its loss. `weights`
    of the terms: by default `config.losses`.
    """
    weights = config.losses if weights is None else weights

    def loss(params, batch: StepBatch, counts):
        live = optimizer.stop_frozen_gradients(params, config.optimizer.freeze)
        outputs = model.apply({'params': live}, batch, batch['tokens'], batch['z'], batch['t'])
        value, means = losses.total(terms, weights, counts, outputs, batch)
        return value, means | {'loss': value}

    return loss


class Objective(NamedTuple):
    """What a train step does with the rows of a batch, apart from the update.

    `prepare(state, batch)` and `complete(state, rows, part)` as the functions of this module;
    `terms` of the loss and their `weights` by name.
    """

    prepare: Callable
    complete: Callable
    terms: Mapping
    weights: Mapping[str, float]


def pretraining(config: ConfigDict, model: Unified) -> Objective:
    """Paper, section 3.2: text, representation tokens and the flow, of the images in the batch."""
    find_targets = model.kind.targets(config, model)
    return Objective(
        partial(prepare, find_targets),
        partial(complete, config, model, find_targets),
        losses.build(config, CrossEntropy(model.sharding, tuple(config.sharding))),
        config.losses,
    )


def build(
    config: ConfigDict, model: Unified, optimizer_of, objective: Objective | None = None
) -> Callable:
    """`step(state, batch) -> (state, metrics)`, pure; jit it with the state donated.

    `objective`: by default that of `pretraining`.
    """
    work = objective or pretraining(config, model)
    loss = loss_function(config, model, work.terms, work.weights)

    def train_step(state: State, batch: Batch):
        whole = state.whole()
        batch, codebook, seen = work.prepare(whole, batch)
        counts = losses.counts(work.terms, batch)
        gradient = jax.grad(lambda params, *rows: loss(state.complete(params), *rows), has_aux=True)

        def of_part(rows, part):  # features, noise and noisy patches of one part only are in memory
            completed = work.complete(whole, rows, part)
            return gradient(state.params, completed, counts)

        grads, metrics = microbatches.summed(of_part, batch, config.optimizer.grad_accum_steps)
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer_of(state.params).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(
            params=params,
            ema=ema.average(config, state.ema, params, state.step),
            opt_state=opt_state,
            codebook=codebook,
            streak=jnp.zeros_like(state.streak),
        )
        stayed = state.replace(skipped=state.skipped + 1, streak=state.streak + 1)
        good = jnp.isfinite(norm) & jnp.isfinite(metrics['loss'])
        state = jax.tree.map(lambda a, b: jnp.where(good, a, b), moved, stayed)
        metrics |= {
            'gradient_norm': norm,
            'parameter_norm': optax.global_norm(state.params),
            'skipped': state.skipped,
            'streak': state.streak,
            **losses.present(work.terms, batch),
            **seen,
        }
        return state.replace(step=state.step + 1), metrics

    return train_step
