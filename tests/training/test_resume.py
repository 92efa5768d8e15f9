"""Stopping costs nothing: a run that is stopped, killed or preempted ends bit-identical."""

import json
import logging
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import environment
from shrink import tiny_run

from configs import base
from rf_jax.data import source_list
from rf_jax.runtime import checkpoint, errors
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.workdir import write_run_files
from rf_jax.training import run_tokenizer, train_loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 60  # of the subprocess runs: enough to be stopped midway
EVERY = 3


def bits(tree):
    return {
        jax.tree_util.keystr(path): (x.dtype, x.shape, np.asarray(x).tobytes())
        for path, x in jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
    }


def assert_same_state(a, b):
    a, b = bits(a), bits(b)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []


class Crash(Exception):
    pass


def watched(workdir, crash_at=0, steps=8):
    """Trains from the checkpoints in the folder; gives (state, {step: (batch, metrics)})."""
    run = tiny_run(
        workdir,
        {
            'steps': steps,
            'checkpoint.every': 2,
            'log.samples_every': 1,
            'optimizer.warmup_steps': 6,  # the stop is during warm-up
            'model.representation.quantizer.data_init_steps': (0, 5),
        },
    )
    seen, train_step = {}, run.train_step

    def spy(state, batch):
        number = int(state.step) + 1
        held = jax.device_get(batch)
        state, metrics = train_step(state, batch)
        seen[number] = held, jax.device_get(metrics)
        return state, metrics

    def crash(number, *_):
        if number == crash_at:
            raise Crash

    run.train_step = spy
    try:
        return train_loop.train(run, crash), seen
    except Crash:
        return None, seen


def test_resumed_run_equals_one_that_never_stopped(tmp_path):
    whole, seen = watched(tmp_path / 'whole')
    _, before = watched(tmp_path / 'cut', crash_at=3)
    state, after = watched(tmp_path / 'cut')
    assert list(before) == [1, 2, 3] and list(after) == [3, 4, 5, 6, 7, 8], 'saved after step 2'
    assert_same_state(state, whole)
    for number, (batch, metrics) in after.items():
        assert_same_state(batch, seen[number][0])
        assert_same_state(metrics, seen[number][1])
    again, nothing = watched(tmp_path / 'cut')
    assert not nothing, 'a finished run has nothing to do'
    assert_same_state(again, whole)


def test_a_finished_run_can_be_extended(tmp_path):
    whole, seen = watched(tmp_path / 'whole', steps=6)
    watched(tmp_path / 'cut', steps=3)
    state, after = watched(tmp_path / 'cut', steps=6)
    assert list(after) == [4, 5, 6]
    assert_same_state(state, whole)
    assert_same_state({n: after[n] for n in after}, {n: seen[n] for n in after})


def test_a_run_without_a_checkpoint_does_not_fix_the_tokenizer(tmp_path, caplog):
    config, folder = base.get_config(), tmp_path / 'run'

    emoji = source_list.build('emoji', 10**6)

    def found(vocabulary, files):
        config.tokenizer.vocab_size = vocabulary
        tokenizer = run_tokenizer.find(config, folder, emoji)
        held = {'tokenizer.model': tokenizer.model_bytes, 'config.json': config.to_json()}
        write_run_files(folder, {name: held[name] for name in files})
        return tokenizer.size

    assert found(400, ['tokenizer.model']) == 400
    assert found(500, []) == 400, 'it may be given by hand'
    assert found(400, ['tokenizer.model', 'config.json']) == 400
    with caplog.at_level(logging.INFO, logger='absl'):
        assert found(400, []) == 400 and f'Tokenizer: {folder}/tokenizer.model' in caplog.text
    assert found(500, ['tokenizer.model', 'config.json']) == 500
    config.tokenizer.path = str(tmp_path / 'none.model')
    with pytest.raises(UserError, match=r'none\.model'):
        found(500, [])
    (folder / 'checkpoints' / '2').mkdir(parents=True)
    assert found(400, []) == 500, 'its weights know this one'


def test_the_tokenizer_of_a_bucket_that_does_not_answer_is_an_error(tmp_path, monkeypatch):
    config = base.get_config()
    emoji = source_list.build('emoji', 10**6)
    tokenizer = run_tokenizer.find(config, tmp_path, emoji)
    write_run_files(tmp_path, {'tokenizer.model': tokenizer.model_bytes})

    def unanswered(path):
        raise errors.Unavailable(f'{path} does not answer')

    monkeypatch.setattr(run_tokenizer.storage, 'read', unanswered)
    with pytest.raises(errors.Unavailable, match=r'config\.json does not answer'):
        run_tokenizer.find(config, tmp_path, emoji)


@pytest.mark.parametrize('stopped', [False, True])
def test_a_last_checkpoint_that_cannot_be_saved_is_an_error(tmp_path, monkeypatch, caplog, stopped):
    if stopped:
        monkeypatch.setattr(train_loop.distributed, 'agreed', lambda local, common: True)
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *_: False)
    with pytest.raises(UserError, match=f'step {1 if stopped else 3} could not be saved'):
        watched(tmp_path / 'run', steps=3)
    assert 'saved; run it again' not in caplog.text


def test_a_signal_while_the_last_checkpoint_is_saved_stops_the_run(tmp_path, monkeypatch):
    """An evaluation would outlast the seconds that are left."""
    ensure = checkpoint.Checkpoints.ensure

    def interrupted(self, step, state):
        signal.raise_signal(signal.SIGTERM)
        ensure(self, step, state)

    run = tiny_run(tmp_path / 'run', {'steps': 1})
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, 'ensure', interrupted)
        state = train_loop.train(run)
    assert int(state.step) == 1 and run.stopped
    train_loop.train(run)
    assert not run.stopped, 'of the last `train`'


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('programs')


class Training:
    """`python -m rf_jax.train` on one device, in a subprocess."""

    def __init__(self, workdir, cache, steps=STEPS):
        flags = {
            'config': 'configs/debug.py',
            'workdir': workdir,
            'config.steps': steps,
            'config.checkpoint.every': EVERY,
            'config.log.every': 1,
            'config.compilation_cache': cache,
            'config.evaluation.samples': 0,
        }
        self.checkpoints = workdir / 'checkpoints'
        self.log = (workdir.parent / f'{workdir.name}.log').open('ab')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'rf_jax.train', *(f'--{k}={v}' for k, v in flags.items())],
            cwd=ROOT,
            env=environment(),
            stdout=self.log,
            stderr=self.log,
        )

    def saved(self):
        """Steps of the checkpoints on disk."""
        found = self.checkpoints.glob('*') if self.checkpoints.exists() else []
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def until_saved_beyond(self, step):
        while not self.saved() or self.saved()[-1] <= step:
            assert self.wait(0.01) is None, f'ended too early: {self.output()}'

    def wait(self, seconds=300.0):
        """Exit code, None if it is still running."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def output(self):
        return Path(self.log.name).read_text(errors='replace')[-3000:]

    def finish(self):
        assert self.wait() == 0, self.output()
        return self


def losses(workdir):
    """[(step, loss)] of every progress line."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


def assert_same_run(a, b):
    (step, state), (other_step, other) = (
        checkpoint.restore_numpy(workdir / 'checkpoints') for workdir in (a, b)
    )
    assert step == other_step == STEPS
    assert_same_state(state, other)
    assert losses(a) == losses(b)
    assert [number for number, _ in losses(a)] == list(range(1, STEPS + 1))


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    Training(workdir, cache).finish()
    return workdir


def test_a_killed_run_ends_with_the_same_state(tmp_path, cache, undisturbed):
    rng, workdir, newest = random.Random(0), tmp_path / 'run', 0
    for _ in range(2):
        training = Training(workdir, cache)
        training.until_saved_beyond(newest)
        training.wait(rng.uniform(0.0, 0.2))  # an arbitrary moment
        training.process.send_signal(signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, 'ended before it was killed: raise STEPS'
        newest = training.saved()[-1]
        assert 0 < newest < STEPS
    Training(workdir, cache).finish()
    assert_same_run(workdir, undisturbed)


def test_sigterm_saves_and_the_run_resumes(tmp_path, cache, undisturbed):
    workdir = tmp_path / 'run'
    training = Training(workdir, cache)
    training.until_saved_beyond(0)
    training.process.send_signal(signal.SIGTERM)
    assert training.wait() == errors.INTERRUPTED, training.output()
    stopped = training.saved()[-1]
    assert stopped < STEPS, 'ended before it was stopped: raise STEPS'
    assert f'Stopped by a signal at step {stopped}, saved' in training.output()
    assert 'Traceback' not in training.output()
    Training(workdir, cache).finish()
    assert_same_run(workdir, undisturbed)
