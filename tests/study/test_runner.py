"""Running a study: jobs in order, shared by processes, failures contained, and the ETA."""

import json
import re
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from small_study import STEPS, fake_score, scores, small

from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.workdir import lock
from rf_jax.study import plan, report, runner
from rf_jax.training import train_loop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('built')]


def test_cheaper_arms_train_on_to_equal_flops(finished):
    _, workdir = finished
    assert list(scores(workdir)) == [
        'first-s0/scores/00000002.json',
        *(f'half-s0/scores/{step:08d}.json' for step in (2, 4, 6, 8)),
        *(f'whole-s0/scores/{step:08d}.json' for step in (2, 4)),
    ]
    spent = {}
    for name in ('half', 'whole'):
        score = scores(workdir)[f'{name}-s0/scores/{8 if name == "half" else 4:08d}.json']
        spent[name] = score['step'] * score['flops_per_step']
        assert score['amount'] == {
            'prompts': 3, 'images': 2, 'captions': 0, 'questions': 5, 'conversations': 0,
        }  # fmt: skip
    assert spent['half'] == pytest.approx(spent['whole'])


def test_arms_start_from_the_stage_of_their_seed(trained):
    _, workdir = trained
    for name in ('half', 'whole'):
        config = json.loads((workdir / f'{name}-s0' / 'config.json').read_text())
        assert config['initialise_from'] == str(workdir / 'first-s0')
    names = ('first-s0', 'half-s0', 'whole-s0')
    assert len({(workdir / name / 'tokenizer.model').read_bytes() for name in names}) == 1
    assert Sampler.load(workdir / 'half-s0').config.steps == 8, 'an ordinary workdir'
    assert Sampler.load(workdir / 'half-s0', step=STEPS), 'also at equal steps'


def test_a_finished_study_trains_nothing(finished, built):
    config, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}
    built.clear()
    assert runner.run(config, workdir, fake_score)
    assert not built
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}


@pytest.mark.nightly
def test_several_processes_share_a_study(finished, built, tmp_path, monkeypatch):
    """A job locked by another process is left to it, and jobs that depend on it wait."""
    _, undisturbed = finished
    config, folder = small(tmp_path, arms='whole,half,double'), tmp_path / 'study'
    others = [lock(folder / 'first-s0')]
    assert lock(folder / 'first-s0') is None

    def waits(seconds):
        assert built == ['double-s0'], 'the only arm that needs no stage'
        others.pop().close()  # the other process ends before its job is done

    monkeypatch.setattr(runner, 'time', SimpleNamespace(sleep=waits, monotonic=time.monotonic))
    built.clear()
    assert runner.run(config, folder, fake_score) and not others
    assert built == ['double-s0', 'first-s0', 'whole-s0', 'half-s0']
    shared = {name: s for name, s in scores(folder).items() if not name.startswith('double')}
    assert shared == scores(undisturbed)


def test_a_lock_is_released_when_its_process_is_killed(tmp_path):
    code = f'from rf_jax.runtime.workdir import lock; input(lock({str(tmp_path)!r}))'
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, '-c', code], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.read(1), 'the other process holds the lock'
        assert lock(tmp_path) is None
        other.kill()
    with lock(tmp_path):
        pass


def test_a_job_started_by_another_process_with_another_config_is_not_touched(
    finished, built, tmp_path, monkeypatch
):
    config, undisturbed = finished
    folder = tmp_path / 'study'
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns('half-s0'))
    lock_next = runner.lock_next

    def other_first(left):
        (folder / 'half-s0').mkdir()
        text = (undisturbed / 'half-s0' / 'config.json').read_text()
        changed = text.replace('"batch_size": 4', '"batch_size": 5')
        (folder / 'half-s0' / 'config.json').write_text(changed)
        return lock_next(left)

    monkeypatch.setattr(runner, 'lock_next', other_first)
    built.clear()
    with pytest.raises(
        UserError, match=r'half-s0 was trained with another config: data.batch_size'
    ):
        runner.run(config, folder, fake_score)
    assert not built


def test_a_failing_job_does_not_stop_the_others(finished, built, tmp_path, monkeypatch):
    _, undisturbed = finished
    config, folder = small(tmp_path), tmp_path / 'study'
    train = train_loop.train

    def diverging(run, *rest):
        if run.workdir.name == 'whole-s0':
            raise UserError('the loss is not finite')
        return train(run, *rest)

    monkeypatch.setattr(train_loop, 'train', diverging)
    built.clear()
    with pytest.raises(UserError, match=r'1 run\(s\) failed.*whole-s0: the loss is not'):
        runner.run(config, folder, fake_score)
    assert built == ['first-s0', 'whole-s0', 'half-s0']
    assert '2 of 3 runs are finished' in (folder / 'report.md').read_text()
    monkeypatch.undo()
    assert scores(folder).keys() == {n for n in scores(undisturbed) if 'whole' not in n}


def test_the_eta_counts_training_and_scoring(finished, tmp_path):
    config, workdir = finished
    jobs = plan.plan(config, workdir, plan.load_arms(config.runs))
    assert 'ETA 0:00 h' in runner.progress(jobs) and '3 of 3 runs' in runner.progress(jobs)
    more = config.copy_and_resolve_references()
    more.seeds = 3
    jobs = plan.plan(more, workdir, plan.load_arms(more.runs))
    assert '3 of 9 runs' in runner.progress(jobs)
    nothing = plan.plan(config, tmp_path, plan.load_arms(config.runs))
    assert 'ETA not known' in runner.progress(nothing)


def test_the_eta_is_divided_among_processes(finished, tmp_path, monkeypatch):
    config, workdir = finished
    folder = tmp_path / 'study'
    shutil.copytree(workdir, folder)
    more = config.copy_and_resolve_references()
    more.seeds = 3
    jobs = plan.plan(more, folder, plan.load_arms(more.runs))
    took = {True: report.TrainingTime(STEPS, 7200.0), False: report.TrainingTime(0, 0.0)}
    monkeypatch.setattr(report, 'training_time', lambda job: took[job.finished])

    def hours():
        eta = re.search(r'ETA (\d+):(\d+) h', runner.progress(jobs))
        return int(eta[1]) + int(eta[2]) / 60

    alone = hours()
    with lock(folder / 'whole-s1'):
        assert hours() == alone, 'one process'
        with lock(folder / 'half-s1'):
            assert hours() == pytest.approx(alone / 2, abs=0.03)
    assert hours() == alone > 1
