"""One optimizer step: quantize, noise, forward, three losses, update (paper, figure 2)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from rf_jax.learning import flow, losses, optimizer
from rf_jax.learning.state import State, random_key
from rf_jax.models import quantizer
from rf_jax.models.unified import Unified, to_signed

Batch = Mapping[str, jax.Array]


def group_features(model: Unified, ema, batch: Batch, pool_first: bool):
    """Unit features z [B P/4, Denc] of the pictures to be drawn, and which are real [B P/4]."""
    z = model.apply({'params': ema}, batch, pool_first, method='features')
    valid = batch['pixel_weight'][:, ::4] > 0
    return quantizer.normalise(z.reshape(-1, z.shape[-1])), valid.reshape(-1)


def take_codes(codes: jax.Array, index: jax.Array) -> jax.Array:
    """Codes [B, P / 4] read at index [B, R], -1 where the index is -1."""
    read = jnp.take_along_axis(codes, jnp.maximum(index, 0), axis=1)
    return jnp.where(index < 0, -1, read)


def redraw(config, at: int, step: jax.Array, codebook, z, valid):
    """The codebook with the prototypes that are drawn from this step's features.

    A batch may hold fewer features than there are prototypes: M features fill M rows a step, from
    step `at` on, until all are filled. Copies of one feature would stay unused for ever.
    """
    turn = jnp.arange(codebook.shape[0]) // z.shape[0]  # which step after `at` fills a row
    key = random_key(config.seed, 'codebook', step)

    def draw(old):
        fresh = quantizer.from_data(key, z, valid, old.shape[0])
        return jnp.where((turn == step - at)[:, None] & valid.any(), fresh, old)

    due = (step >= at) & (step <= at + turn[-1])
    return jax.lax.cond(due, draw, lambda old: old, codebook)


def quantize(config, assign, model, state: State, batch: Batch):
    """(codes int32 [B, P / 4], new codebook): targets by the EMA encoder, without gradient."""
    c = config.model.representation.quantizer
    rows, patches, _ = batch['pixels'].shape
    if not patches:  # no room for drawings
        return jnp.zeros((rows, 0), jnp.int32), state.codebook
    z, valid = group_features(model, state.ema, batch, c.pool_first)
    codebook = state.codebook
    for at in c.data_init_steps:
        codebook = redraw(config, at, state.step, codebook, z, valid)
    codes = assign(z, codebook, valid)
    codebook = quantizer.update(codebook, z, codes, valid, c.momentum)
    return codes.reshape(rows, -1), codebook


def add_noise(config, key: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Clean patches x, their times t (one a picture) and the noisy z_t, as batch entries."""
    c = config.flow
    time_key, noise_key = jax.random.split(key)
    counts = batch['pixel_counts']
    t = flow.sample_times(time_key, counts.shape, c.time_mean, c.time_std)
    t = flow.shift(t, flow.shift_of(counts * config.data.patch**2, c.shift, c.base_pixels))
    t = jnp.take_along_axis(t, jnp.maximum(batch['pixel_picture'], 0), axis=1)
    x = to_signed(batch['pixels'])
    z = flow.path(x, c.noise_scale * jax.random.normal(noise_key, x.shape), t)
    return {'x': x, 't': t, 'z': z}


def used_codes(batch: Batch, codes: int) -> jax.Array:
    """Share of the K codes that are a target in this batch."""
    hit = jnp.zeros(codes + 1).at[
        jnp.where(batch['code_targets'] < 0, codes, batch['code_targets'])
    ]
    return hit.set(1.0)[:-1].mean()


def prepare(config, assign, model, state: State, batch: Batch):
    """The batch with targets, times and noise, and the new codebook. No gradient flows here."""
    codes, codebook = quantize(config, assign, model, state, batch)
    key = random_key(config.seed, 'noise', state.step)
    batch = dict(batch) | add_noise(config, key, batch)
    batch['codes'] = take_codes(codes, batch['input_group'])
    batch['code_targets'] = take_codes(codes, batch['target_group'])
    batch['live'] = (batch['segment'] > 0).astype(jnp.float32)
    return batch, codebook


def gradients(config, model, terms, params, batch: Batch):
    """(gradients, metrics), the batch cut into `optimizer.accumulate` parts along its rows.

    Each part's loss is divided by the whole batch's counts, so the parts add up to it exactly.
    """
    counts = losses.counts(terms, batch)

    def part_loss(params, part):
        live = optimizer.held(params, config.optimizer.freeze)
        outputs = model.apply({'params': live}, part, part['codes'], part['z'], part['t'])
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


def average(config, ema, params, step: jax.Array):
    """EMA, with warm-up if asked; the encoder has a decay of its own."""
    warm = (1.0 + step) / (10.0 + step) if config.ema.warmup else 1.0

    def blend(path, old, new):
        c = config.ema
        decay = c.encoder_decay if path.startswith('encoder/') else c.decay
        return old + (1 - jnp.minimum(decay, warm)) * (new - old)

    names = optimizer.paths(params)
    leaves = map(blend, names, jax.tree.leaves(ema), jax.tree.leaves(params))
    return jax.tree.unflatten(jax.tree.structure(params), list(leaves))


def build(config, model: Unified, optimizer_of) -> Callable:
    """`step(state, batch) -> (state, metrics)`, pure; jit it with the state donated."""
    assign = quantizer.build(config)
    terms = losses.build(config)

    def train_step(state: State, batch: Batch):
        batch, codebook = prepare(config, assign, model, state, batch)
        grads, metrics = gradients(config, model, terms, state.params, batch)
        norm = optax.global_norm(grads)
        updates, opt_state = optimizer_of(state.params).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        moved = state.replace(
            params=params,
            ema=average(config, state.ema, params, state.step),
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
            'codes_used': used_codes(batch, state.codebook.shape[0]),
        }
        return state.replace(step=state.step + 1), metrics

    return train_step
