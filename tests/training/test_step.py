"""A train step counts, skips, averages and learns as documented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import tiny_run

from rf_jax.models import microbatches, quantizer
from rf_jax.models.representation import features, forcing
from rf_jax.training import ema, losses, optimizer, step

pytestmark = pytest.mark.slow

CHANGES = {
    'optimizer.learning_rate': 5e-3,
    'model.representation.quantizer.data_init_steps': (0, 2),
    'ema.decay': 0.95,
    'ema.encoder_decay': 0.05,  # below the warm-up's 0.1, so that the two differ from the start
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp('step'), CHANGES)


@pytest.fixture(scope='module')
def fresh(run):
    """A state to copy, since steps donate theirs."""
    return run.initialise()


@pytest.fixture(scope='module')
def batch(run):
    return run.put(run.batches.batch(0))


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def assert_same(a, b, context=''):
    for name, x, y in zip(optimizer.paths(a), jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), f'{context}{name}'


def differs(a, b):
    return any((np.asarray(x) != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_non_finite_step_is_skipped_and_counted(run, fresh, batch):
    good, _ = run.train_step(copy(fresh), batch)
    before = jax.device_get(good)
    bad = dict(batch) | {'position': batch['position'].at[0].set(jnp.nan)}
    state, metrics = good, {}
    for streak in (1, 2):
        state, metrics = run.train_step(state, bad)
        assert not np.isfinite(metrics['loss'])
        assert int(metrics['skipped']) == int(metrics['streak']) == streak
    assert int(state.step) == 3, 'the batches of skipped steps are consumed'
    for part in ('params', 'ema', 'opt_state', 'codebook'):
        assert_same(getattr(state, part), getattr(before, part), f'{part}/')
    state, metrics = run.train_step(state, batch)
    assert int(metrics['skipped']) == 2 and int(metrics['streak']) == 0
    assert np.isfinite(metrics['loss']) and int(state.step) == 4
    for part in ('params', 'ema', 'opt_state', 'codebook'):
        assert differs(getattr(state, part), getattr(before, part)), part


def test_the_step_after_a_skipped_one_initialises_the_codebook(run, fresh, batch):
    bad = dict(batch) | {'position': batch['position'].at[0].set(jnp.nan)}
    state, metrics = run.train_step(copy(fresh), bad)
    assert int(metrics['skipped']) == 1
    state, metrics = run.train_step(state, batch)
    assert int(metrics['skipped']) == 1
    # Momentum alone leaves prototypes within a few degrees of their random start.
    kept = (np.asarray(state.codebook) * np.asarray(fresh.codebook)).sum(-1)
    assert (kept < 0.9).all(), kept.max()


@pytest.mark.parametrize('where', ['gradient', 'loss'])
def test_one_infinite_gradient_or_loss_is_enough_to_skip(run, fresh, batch, monkeypatch, where):
    def one_infinite(of_part, batch, count):
        shapes = jax.eval_shape(lambda rows: of_part(rows, microbatches.WHOLE), batch)
        gradient, metrics = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
        if where == 'loss':
            return gradient, metrics | {'loss': jnp.inf}
        gradient['text_head']['kernel'] = gradient['text_head']['kernel'].at[0, 0].set(jnp.inf)
        return gradient, metrics

    monkeypatch.setattr(microbatches, 'summed', one_infinite)
    train_step = step.build(
        run.config, run.model, lambda p: optimizer.build(run.config.optimizer, p, 10)
    )
    state, metrics = jax.jit(train_step)(fresh, batch)
    assert int(metrics['skipped']) == int(metrics['streak']) == int(state.step) == 1
    for part in ('params', 'ema', 'opt_state', 'codebook'):
        assert_same(getattr(state, part), getattr(fresh, part), f'{part}/')


def test_gradient_accumulation_changes_no_gradient(run, fresh, batch):
    config, terms = run.config, losses.build(run.config)
    # Away from the initial point, where some gradients are zero.
    leaves, structure = jax.tree.flatten(fresh.params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    leaves = [x + 0.05 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    params = jax.tree.unflatten(structure, leaves)
    find = run.model.kind.targets(config, run.model)
    # Uneven rows: the first has hardly any counted text, so a mean of means would differ.
    uneven = dict(batch) | {'text_weight': batch['text_weight'].at[0, 3:].set(0)}

    gradient = jax.grad(step.loss_function(config, run.model, terms), has_aux=True)

    def gradients(parts):
        def of(state, params, batch):
            batch, codebook, _ = step.prepare(find, state, batch)
            counts = losses.counts(terms, batch)

            def of_part(rows, part):
                rows = step.complete(config, run.model, find, state, rows, part)
                return gradient(params, rows, counts)

            return microbatches.summed(of_part, batch, parts), codebook

        return jax.jit(of)(fresh, params, uneven)

    ((whole, told), codebook), ((parts, told_parts), codebook_parts) = gradients(1), gradients(4)
    np.testing.assert_allclose(codebook, codebook_parts, atol=1e-6)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole))
    for name, a, b in zip(optimizer.paths(whole), jax.tree.leaves(whole), jax.tree.leaves(parts)):
        assert float(jnp.abs(a).max()) > 0, f'{name} has no gradient'
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest, err_msg=name)
    for name in told:
        np.testing.assert_allclose(told[name], told_parts[name], rtol=1e-5, err_msg=name)


def test_ema_warms_up_and_the_encoder_has_its_own_decay(run, fresh):
    new = jax.tree.map(lambda x: x + 1.0, fresh.params)
    for at, warm in ((0, 1 / 10), (5, 6 / 15), (10_000, 10_001 / 10_010)):
        found = ema.average(run.config, fresh.ema, new, jnp.int32(at))
        for path, old, value in zip(
            optimizer.paths(new), jax.tree.leaves(fresh.ema), jax.tree.leaves(found)
        ):
            decay = min(0.05 if path.startswith('encoder/') else 0.95, warm)
            np.testing.assert_allclose(value, old + (1 - decay), atol=1e-5, err_msg=path)
    assert any(path.startswith('encoder/') for path in optimizer.paths(new))


def test_ema_of_new_parameters_always_warms_up(run, fresh):
    config = run.config.copy_and_resolve_references()
    config.ema.warmup, config.initialise_new = False, (r'^representation_',)
    new = jax.tree.map(lambda x: x + 1.0, fresh.params)
    found = ema.average(config, fresh.ema, new, jnp.int32(0))
    for path, old, value in zip(
        optimizer.paths(new), jax.tree.leaves(fresh.ema), jax.tree.leaves(found)
    ):
        decay = 0.05 if path.startswith('encoder/') else 0.95
        decay = 0.1 if path.startswith('representation_') else decay
        np.testing.assert_allclose(value, old + (1 - decay), atol=1e-5, err_msg=path)


def test_step_updates_the_ema_from_the_new_parameters(run, fresh, batch):
    state, _ = run.train_step(copy(fresh), batch)
    right = ema.average(run.config, fresh.ema, state.params, jnp.int32(0))
    for name, a, b in zip(
        optimizer.paths(right), jax.tree.leaves(state.ema), jax.tree.leaves(right)
    ):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg=name)


def test_the_codebook_is_initialised_from_data_at_the_configured_steps(run, fresh, batch):
    assign = quantizer.build(run.config)
    quantize = jax.jit(lambda state: forcing.quantize(run.config, assign, run.model, state, batch))
    z, valid = features.group_features(run.config, run.model, fresh.ema, batch)
    z = np.asarray(z)[np.asarray(valid)]
    old = np.asarray(fresh.codebook)
    assert (old @ z.T).max(1).min() < 0.9, 'a random codebook is no data'
    for at in range(4):
        codes, codebook = quantize(fresh.replace(step=jnp.int32(at)))
        if at in (0, 2):
            assert (codebook @ z.T).max(1).min() > 0.98, at
        else:
            used = np.unique(np.asarray(codes).reshape(-1)[np.asarray(valid)])
            unused = np.setdiff1d(np.arange(len(old)), used)
            np.testing.assert_array_equal(codebook[unused], old[unused])
            # momentum 0.99: used prototypes move, but not far
            assert (np.asarray(codebook)[used] != old[used]).any(1).all()
            assert ((np.asarray(codebook) * old).sum(1) > 0.99).all()


def test_dropped_codes_and_targets_come_from_the_same_groups(run, fresh, batch):
    find = run.model.kind.targets(run.config, run.model)
    prepared, *_ = jax.jit(lambda s: step.prepare(find, s, batch))(fresh)
    codes, sought = np.asarray(prepared['tokens']), np.asarray(prepared['code_targets'])
    weight = np.asarray(batch['representation_weight']) > 0
    assert (sought[weight] >= 0).all() and (sought[~weight] == -1).all()
    # Position i predicts the code at position i + 1.
    after = np.roll(codes, -1, 1)
    np.testing.assert_array_equal(after[weight], sought[weight])


def test_noise_is_a_function_of_seed_and_step(run, fresh, batch):
    first, again, other = (
        step.add_noise(
            run.config, run.model, fresh.params, jax.random.fold_in(jax.random.key(0), i), batch
        )
        for i in (3, 3, 4)
    )
    np.testing.assert_array_equal(first['z'], again['z'])
    assert differs(first['z'], other['z']) and differs(first['t'], other['t'])
    image = np.asarray(batch['pixel_image'])
    for row, t in zip(image, np.asarray(first['t'])):
        for number in set(row[row >= 0]):
            assert len(set(t[row == number])) == 1, 'one time an image'


def test_overfits_one_batch(run, fresh, batch):
    state, seen = copy(fresh), []
    for _ in range(60):
        state, metrics = run.train_step(state, batch)
        seen.append({name: float(metrics[name]) for name in ('text', 'representation', 'flow')})
    for name in seen[0]:
        begin = np.mean([s[name] for s in seen[:5]])
        end = np.mean([s[name] for s in seen[-5:]])
        assert end < 0.8 * begin, f'{name}: {begin:.3f} -> {end:.3f}'
