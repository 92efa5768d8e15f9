"""Validation: the losses of data that is not trained on, under the averaged weights."""

import json
import math
import signal
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import shrink, tiny_run

from configs import base
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, train_loop, validation

HELD_OUT = {
    'validation.sources': 'scenes:aligned/48/count=60/seed=7',
    'validation.every': 2,
    'validation.batches': 2,
}
SOURCES = {'data.sources': 'scenes:aligned/48/count=60', 'data.batch_size': 8}


def validated(run):
    lines = map(json.loads, (run.workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line for line in lines if 'validation/loss' in line}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A run with validation and its state, and the same without."""
    folder = tmp_path_factory.mktemp('runs')
    found = {}
    for name, more in {'with': HELD_OUT, 'without': {}}.items():
        run = tiny_run(folder / name, SOURCES | {'steps': 3} | more)
        found[name] = run, train_loop.train(run)
    return found


@pytest.mark.slow
def test_training_is_the_same_bit_for_bit(runs):
    (_, with_it), (run, without) = runs['with'], runs['without']
    jax.tree.map(np.testing.assert_array_equal, with_it, without)
    assert not validated(run)


@pytest.mark.slow
def test_losses_are_logged_at_multiples_and_at_the_end(runs):
    run, state = runs['with']
    found = validated(run)
    assert list(found) == [2, 3]
    again = validation.measure(run, state, 3)
    logged = {name: None if math.isnan(value) else value for name, value in again.items()}
    assert logged == {name: found[3][name] for name in again}  # the same noise
    assert set(again) == {
        'validation/loss',
        *(f'validation/loss/{name}' for name in ('text', 'representation', 'flow')),
        *(f'validation/loss/flow_t{band}' for band in range(4)),
    }
    total = sum(again[f'validation/loss/{name}'] for name in ('text', 'representation', 'flow'))
    assert again['validation/loss'] == pytest.approx(total)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_validates_has_all_lines(runs, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    changes = SOURCES | HELD_OUT | {'steps': 3}  # a checkpoint is due at step 2 too
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(validation, 'measure', killed)
        train_loop.train(tiny_run(tmp_path, changes))
    again = tiny_run(tmp_path, changes)
    train_loop.train(again)
    wanted, found = validated(runs['with'][0]), validated(again)
    assert list(found) == [2, 3]
    for step in found:
        assert found[step]['validation/loss'] == wanted[step]['validation/loss']


@pytest.mark.slow
def test_a_signal_breaks_a_validation_off_until_the_state_is_saved(runs, tmp_path, monkeypatch):
    """It may have more batches than a machine has seconds after SIGTERM."""
    run = tiny_run(tmp_path, SOURCES | HELD_OUT | {'steps': 3, 'checkpoint.every': 10})
    validate, saved = run.validate, []

    def signalled(*arguments):
        saved.append([path.name for path in (tmp_path / 'checkpoints').glob('[0-9]')])
        if len(saved) == 1:
            signal.raise_signal(signal.SIGTERM)
        return validate(*arguments)

    run.validate = signalled
    state = train_loop.train(run)
    assert run.stopped and int(state.step) == 2
    assert saved == [[], ['2'], ['2']]  # the second batch waits for the checkpoint; all over again
    wanted, found = validated(runs['with'][0]), validated(run)
    assert list(found) == [2] and found[2]['validation/loss'] == wanted[2]['validation/loss']


@pytest.mark.slow
def test_the_images_are_those_of_the_held_out_sources(runs):
    run, _ = runs['with']
    assert [s.name for s in run.held_out.sources] == ['scenes:aligned/48/count=60/seed=7']
    assert not np.array_equal(run.held_out.batch(0)['pixels'], run.batches.batch(0)['pixels'])


@pytest.mark.slow
def test_the_weights_are_the_average(runs):
    run, state = runs['with']
    other = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    moved = state.replace(ema=jax.tree.map(lambda a: a * 1.1, state.ema))
    losses = [validation.measure(run, each, 3) for each in (state, other, moved)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_a_batch_without_tokens_of_a_term_does_not_count_for_it(runs):
    run, state = runs['with']
    batch = run.held_out.batch(0)
    batch['pixel_weight'] = np.zeros_like(batch['pixel_weight'])
    means, counts = jax.device_get(run.validate(state, run.put(batch), 0))
    assert counts['flow'] == means['flow'] == 0
    assert counts['text'] == batch['text_weight'].sum() > 0


def test_means_are_over_all_tokens_not_over_batches():
    bands = {f'flow_{kind}_{band}': 0.0 for kind in ('sum', 'count') for band in range(4)}
    parts = [
        ({'text': 2.0, 'flow': 1.0} | bands | {'flow_sum_3': 9.0, 'flow_count_3': 6.0}, (40, 10)),
        ({'text': 8.0, 'flow': 4.0} | bands | {'flow_sum_3': 1.0, 'flow_count_3': 4.0}, (2, 30)),
    ]
    run = SimpleNamespace(
        config=ConfigDict({'losses': {'text': 1.0, 'flow': 2.0}, 'validation': {'batches': 2}}),
        held_out=SimpleNamespace(iterate=range),
        put=lambda batch: batch,
        validate=lambda state, batch, _: (
            parts[batch][0],
            dict(zip(('text', 'flow'), parts[batch][1])),
        ),
    )
    found = validation.measure(run, None, 3)
    assert found['validation/loss/text'] == pytest.approx((2 * 40 + 8 * 2) / 42)
    assert found['validation/loss/flow'] == pytest.approx((1 * 10 + 4 * 30) / 40)
    assert found['validation/loss/flow_t3'] == pytest.approx(1.0)
    assert math.isnan(found['validation/loss/flow_t0'])  # no patch had such a time
    assert found['validation/loss'] == pytest.approx(96 / 42 + 2 * 130 / 40)
    parts = [(means, (count, 0)) for means, (count, _) in parts]
    found = validation.measure(run, None, 3)
    assert math.isnan(found['validation/loss/flow'])
    assert found['validation/loss'] == pytest.approx(96 / 42)


def test_an_error_while_it_measures_names_the_field():
    def iterate(*_):
        raise UserError('20 consecutive images cannot be decoded. Do data.sources still exist?')
        yield

    run = SimpleNamespace(
        config=ConfigDict({'validation': {'batches': 2}}), held_out=SimpleNamespace(iterate=iterate)
    )
    with pytest.raises(UserError, match=r'Do validation\.sources still exist'):
        validation.measure(run, None, 3)


@pytest.mark.slow
def test_parts_and_devices_do_not_change_the_losses(runs, tmp_path):
    run, state = runs['with']
    host = jax.device_get(state)
    expected = validation.measure(run, state, 3)
    for parts, devices in ((2, 1), (1, 8), (2, 4)):
        changes = SOURCES | HELD_OUT | {'steps': 3, 'optimizer.grad_accum_steps': parts}
        other = tiny_run(tmp_path / f'{parts}_{devices}', changes, devices)
        placed = jax.tree.map(lambda a, s: jax.device_put(a, s.sharding), host, other.abstract)
        found = validation.measure(other, placed, 3)
        for name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-5, nan_ok=True), name


def test_errors_name_the_field(tmp_path):
    config = shrink(base.get_config())
    config.validation.sources = 'emojis'
    with pytest.raises(UserError, match=r"^validation\.sources: unknown kind 'emojis'"):
        checks.check(config)
    config.validation.sources = f'folder:{tmp_path}/none'
    checks.check(config)
    with pytest.raises(UserError, match=r'^validation\.sources: folder:.* needs a file captions'):
        train_loop.build(config, tmp_path / 'run', jax.devices()[:1])


def test_a_task_that_is_not_served_needs_another_source(tmp_path):
    """To set data.tasks.conversation=0 would change what the run is trained on."""
    config = shrink(base.get_config())
    config.data.sources = 'scenes:aligned/48/count=60,scenes:aligned/48/count=60/conversations'
    config.data.tasks.conversation = 1.0
    config.validation.sources = 'scenes:aligned/48/count=60/seed=7'
    with pytest.raises(UserError) as error:
        train_loop.build(config, tmp_path / 'run', jax.devices()[:1])
    assert str(error.value) == (
        "no example of 'scenes:aligned/48/count=60/seed=7' can serve ['conversation']: add a "
        'source that can (validation.sources)'
    )
