"""One optimizer step: quantize, noise, forward, three losses, update (paper, figure 2)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from rf_jax.learning import averaging, flow, losses, optimizer, targets
from rf_jax.learning.state import State, random_key
from rf_jax.models.unified import Unified

Batch = Mapping[str, jax.Array]


def add_noise(config, model, params, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Clean patches or latents x, their times t (one a picture) and the noisy z_t, as batch
    entries, and the noise that an autoencoder in learning draws its latents with.
    """
    c = config.flow
    time_key, noise_key = jax.random.split(key)
    posterior_key = jax.random.fold_in(key, 2)
    counts = batch['pixel_counts']
    t = flow.sample_times(time_key, counts.shape, c.time_mean, c.time_std)
    t = flow.shift(t, flow.shift_of(counts * config.data.patch**2, c.shift, c.base_pixels))
    t = jnp.take_along_axis(t, jnp.maximum(batch['pixel_picture'], 0), axis=1)
    x = model.apply({'params': params}, batch, method='clean')
    z = flow.path(x, c.noise_scale * jax.random.normal(noise_key, x.shape), t)
    return {'x': x, 't': t, 'z': z, 'posterior_noise': jax.random.normal(posterior_key, x.shape)}


def prepare(config, model, targets, state: State, batch: Batch):
    """The batch with targets, times and noise, the new codebook, and metrics of the targets."""
    found, codebook, metrics = targets(state, batch)
    key = random_key(config.seed, 'noise', state.step)
    batch = dict(batch) | found | add_noise(config, model, state.params, key, batch)
    batch['live'] = (batch['segment'] > 0).astype(jnp.float32)
    return batch, codebook, metrics


def gradients(config, model, terms, params, batch: Batch):
    """(gradients, metrics), the batch cut into `optimizer.accumulate` parts along its rows.

    Each part's loss is divided by the whole batch's counts, so the parts add up to it exactly.
    """
    counts = losses.counts(terms, batch)

    def part_loss(params, part):
        live = optimizer.held(params, config.optimizer.freeze)
        inputs = (part[name] for name in ('tokens', 'z', 't', 'posterior_noise'))
        outputs = model.apply({'params': live}, part, *inputs)
        loss, means = losses.total(terms, config.losses, counts, outputs, part)
        return loss, means | {'loss': loss}

    gradient = jax.grad(part_loss, has_aux=True)
    parts = config.optimizer.accumulate
    if parts == 1:
        return gradient(params, batch)
    # Row r goes to part r mod parts, so that a part spreads over all devices as the batch does.
    split = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch
    )
    zero = jax.eval_shape(gradient, params, jax.tree.map(lambda a: a[0], split))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), zero)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    return jax.lax.scan(add, zero, split)[0]


def build(config, model: Unified, optimizer_of) -> Callable:
    """`step(state, batch) -> (state, metrics)`, pure; jit it with the state donated."""
    find_targets = targets.build(config, model)
    terms = losses.build(config, model.cut)

    def train_step(state: State, batch: Batch):
        batch, codebook, seen = prepare(config, model, find_targets, state, batch)
        grads, metrics = gradients(config, model, terms, state.params, batch)
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer_of(state.params).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(
            params=params,
            ema=averaging.average(config, state.ema, params, state.step),
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
            **seen,
        }
        return state.replace(step=state.step + 1), metrics

    return train_step
