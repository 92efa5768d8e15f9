"""An interrupted study resumes without repeating work and ends with the same results."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from small_study import fake_score, scores, small

from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.study import runner
from rf_jax.training import train_loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('built')]


class Crash(Exception):
    pass


def test_a_study_stopped_at_any_point_ends_with_the_same_results(
    finished, built, tmp_path, monkeypatch
):
    _, undisturbed = finished
    config, workdir, scored = small(tmp_path), tmp_path / 'study', []
    disturbed = {
        ('first-s0', 2): Crash,  # trained, not scored
        ('whole-s0', 2): signal.SIGTERM,  # between steps
        ('half-s0', 4): Crash,  # in the middle, perhaps with its checkpoint on disk
    }
    original = runner.Scorer.at

    def at(self, step, *rest):
        what = disturbed.pop((self.job.folder.name, step), None)
        if what is Crash:
            raise Crash
        if what:
            os.kill(os.getpid(), what)
        scored.append((self.job.folder.name, step))
        return original(self, step, *rest)

    monkeypatch.setattr(runner.Scorer, 'at', at)
    built.clear()
    ends = []
    while True not in ends and len(ends) < 10:
        try:
            ends.append(runner.run(config, workdir, fake_score))
        except Crash:
            ends.append(Crash)
    assert ends == [Crash, False, Crash, True] and not disturbed
    assert len(scored) == len(set(scored)), 'nothing is scored twice'
    assert built == [f'{name}-s0' for name in ['first'] * 2 + ['whole'] * 2 + ['half'] * 2]
    assert scores(workdir) == scores(undisturbed)
    for name in ('whole-s0', 'half-s0'):
        (step, state), other = (
            checkpoint.restore_numpy(folder / name / 'checkpoints')
            for folder in (workdir, undisturbed)
        )
        assert step == other[0]
        assert jax.tree.all(jax.tree.map(np.array_equal, state, other[1]))
    assert (workdir / 'results.csv').read_text() == (undisturbed / 'results.csv').read_text()


@pytest.mark.nightly
def test_a_signal_in_the_last_step_of_a_job_stops_the_study(built, tmp_path, monkeypatch):
    config, workdir = small(tmp_path), tmp_path / 'study'
    original, put = train_loop.Run.put, []

    def signalled(self, *given):
        put.append(self.workdir.name)
        if put == ['first-s0'] * 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(train_loop.Run, 'put', signalled)
    built.clear()
    assert not runner.run(config, workdir, fake_score)
    assert built == ['first-s0'] and not scores(workdir)
    assert checkpoint.restore_numpy(workdir / 'first-s0' / 'checkpoints')[0] == 2, 'it is saved'


def test_a_missing_score_is_taken_from_the_checkpoint(finished, built):
    config, workdir = finished
    path = workdir / 'half-s0' / 'scores' / '00000008.json'
    before = json.loads(path.read_text())
    path.unlink()
    built.clear()
    assert runner.run(config, workdir, fake_score)
    assert built == ['half-s0']
    assert json.loads(path.read_text()) == before | {
        'seconds': json.loads(path.read_text())['seconds']
    }


@pytest.mark.nightly
def test_a_stage_without_checkpoint_is_retrained_only_if_a_job_needs_it(finished, built, tmp_path):
    """Scores are small and kept; checkpoints may be removed."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('checkpoints'))
    built.clear()
    assert runner.run(config, folder, fake_score)
    assert not built, 'no job needs it'
    shutil.rmtree(folder / 'half-s0')
    assert runner.run(config, folder, fake_score)
    assert built == ['first-s0', 'half-s0']
    assert scores(folder) == scores(undisturbed)


@pytest.mark.nightly
def test_no_arm_starts_from_a_stage_that_is_being_retrained(finished, built, tmp_path, monkeypatch):
    """Interrupted, the stage has its score and a checkpoint, but of fewer steps."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('checkpoints', 'half-s0'))
    original = train_loop.Run.put

    def signalled(self, *given):
        monkeypatch.setattr(train_loop.Run, 'put', original)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *given)

    monkeypatch.setattr(train_loop.Run, 'put', signalled)
    built.clear()
    assert not runner.run(config, folder, fake_score)
    assert checkpoint.restore_numpy(folder / 'first-s0' / 'checkpoints')[0] == 1
    assert runner.run(config, folder, fake_score)
    assert built == ['first-s0', 'first-s0', 'half-s0']
    assert scores(folder) == scores(undisturbed)


@pytest.mark.nightly
def test_no_arm_starts_from_an_earlier_checkpoint_of_its_stage(finished, built, tmp_path):
    """The last checkpoint is damaged, and an earlier one can be read."""
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('half-s0'))
    checkpoints = folder / 'first-s0' / 'checkpoints'
    (checkpoints / '2').rename(checkpoints / '1')
    (checkpoints / '2').mkdir()
    built.clear()
    with pytest.raises(UserError, match=r'of .*first-s0 is step 1, not 2'):
        runner.run(config, folder, fake_score)
    assert not built and not (folder / 'half-s0' / 'checkpoints').exists()


@pytest.mark.nightly
def test_a_stage_that_saves_no_checkpoint_fails_once_and_is_not_retried(
    built, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoint.Checkpoints, 'save', lambda *given, **named: None)
    built.clear()
    with pytest.raises(UserError, match=r'first-s0: the checkpoint of step 2 could not be saved'):
        runner.run(small(tmp_path), tmp_path / 'study', fake_score)
    assert built == ['first-s0']
