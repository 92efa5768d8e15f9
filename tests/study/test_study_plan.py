"""The plan of a study: budgets, checkpoints, and errors before anything is trained."""

import math
import sys
from pathlib import Path

import pytest
from small_study import ARMS, assert_refused, small

from configs import study as study_config
from rf_jax.runtime.errors import UserError
from rf_jax.study import plan

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    'own, reference, steps', [(3.0, 3.0, 100), (2.0, 3.0, 150), (0.7, 1.0, 143), (1.0, 3.0001, 301)]
)
def test_equal_flops_are_reached_in_the_fewest_steps(own, reference, steps):
    assert plan.equal_flops_steps(100, own, reference) == steps
    assert steps * own >= 100 * reference * (1 - 1e-9) > (steps - 1) * own or steps == 100


@pytest.mark.parametrize('steps, points, every', [(3500, 7, 500), (3600, 6, 300), (300, 2, 150)])
def test_there_is_a_checkpoint_at_every_point(tmp_path, steps, points, every):
    config = small(tmp_path, steps=steps, **{'curve.points': points})
    text = ARMS.replace(
        'config.data.batch_size =', 'config.checkpoint.every = 500\n    config.data.batch_size ='
    )
    Path(config.runs).write_text(text)
    arms = plan.load_arms(config.runs)
    jobs = plan.plan(config, tmp_path, arms)
    assert {p.config.checkpoint.every for p in jobs if not p.is_stage} == {every}


def test_the_folder_of_another_study_is_refused_naming_its_fields(finished):
    config, workdir = finished
    other = config.copy_and_resolve_references()
    other.steps, other.curve.prompts = 8, 1
    assert_refused(other, workdir, r'curve.prompts is 1 and was 2; steps is 8 and was 4')
    other = config.copy_and_resolve_references()
    other.arms = 'half,whole'
    assert_refused(other, workdir, r"arms is \['half'\] and was \['whole'\]")
    assert_refused(config, workdir / 'half-s0', 'holds a run')


def test_arms_and_seeds_may_be_added_and_removed(finished):
    config, workdir = finished
    more = config.copy_and_resolve_references()
    more.arms, more.seeds = 'whole,double,half', 2
    plan.check_recorded(more, workdir)
    jobs = plan.plan(more, workdir, plan.load_arms(more.runs))
    for job in jobs:
        plan.check_run(job)
    ends = {(p.name, p.seed): (p.steps, p.last, p.finished) for p in jobs}
    assert list(ends) == [
        (name, seed) for seed in (0, 1) for name in ('first', 'whole', 'double', 'half')
    ]
    assert ends['first', 0] == (2, 2, True), 'a stage is trained once'
    assert ends['half', 0] == (4, 8, True) and ends['whole', 0] == (4, 4, True)
    assert ends['double', 0] == (4, 4, False), 'a more expensive arm changes no other'
    fewer = config.copy_and_resolve_references()
    fewer.arms = 'whole'
    plan.check_recorded(fewer, workdir)


def test_a_changed_arm_is_refused(finished, tmp_path):
    _, workdir = finished
    other = small(tmp_path, overrides=('optimizer.learning_rate=0.5',))
    jobs = plan.plan(other, workdir, plan.load_arms(other.runs))
    with pytest.raises(UserError, match=r'first-s0.*optimizer.learning_rate is 0.5 and was'):
        plan.check_run(jobs[0])


@pytest.mark.parametrize(
    'changes, match',
    [
        ({'arms': 'whole,hlaf'}, r"'hlaf' is not known; did you mean 'half'\?.*Known: whole, half"),
        ({'arms': 'first'}, "'first' is not known"),
        ({'arms': ''}, 'arms is empty; known: whole'),
        ({'arms': 'half,half'}, 'names half twice'),
        ({'steps': 5}, 'steps=5 must be a multiple of curve.points=2'),
        ({'curve.prompts': 4}, 'curve.prompts=4 cannot be more than prompts=3'),
        ({'seeds': 0}, 'seeds=0 must be at least 1'),
        ({'captions': 30000}, r'captions=30000 .* there are only 20000 new scenes'),
        ({'captions': 1}, 'captions=1 must be 0 or at least 2'),
        ({'overrides': ('steps=9',)}, "'steps=9': the study itself sets steps"),
        ({'runs': 'no.py'}, "runs='no.py'"),
    ],
)
def test_a_study_that_cannot_run_is_refused(tmp_path, changes, match):
    assert_refused(small(tmp_path, **changes), tmp_path / 'study', match)


@pytest.mark.parametrize(
    'change, match',
    [
        ('data.batch=4', 'did you mean .data.batch_size'),
        ('data.batch_size=many', 'data.batch_size=many'),
    ],
)
def test_an_override_of_an_unknown_field_is_refused(tmp_path, change, match):
    config = small(tmp_path, overrides=(change,))
    with pytest.raises(UserError, match=match):
        plan.plan(config, tmp_path, plan.load_arms(config.runs))


@pytest.mark.parametrize(
    'change, match',
    [
        ('data.capacity.pixels=4', r'whole: data.capacity.pixels=4 cannot hold one example'),
        ("model.backbone.split='halves'", r"first: .*'halves' is not known"),
        ('data.sources=scenes:aligned/32/objects=1', 'whole: prompts ask for two or more objects'),
        ('data.sources=emoji', 'first: .* has no scenes'),
        ('data.max_text_tokens=8', "whole: the run's tokenizer splits .* data.max_text_tokens=8"),
    ],
)
def test_errors_of_any_job_are_raised_before_the_first_one_starts(tmp_path, change, match):
    assert_refused(small(tmp_path, overrides=(change,)), tmp_path / 'study', match)


def test_missing_matplotlib_is_reported_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert_refused(small(tmp_path), tmp_path / 'study', r'pip install .*study')


def test_the_study_config_and_its_quick_variant_have_the_same_fields():
    full, quick = study_config.get_config(), study_config.get_config('quick')
    assert set(full) == set(quick) and quick.steps < full.steps
    assert math.gcd(full.steps, full.curve.points) == full.curve.points
    with pytest.raises(UserError, match='quick'):
        study_config.get_config('quik')
