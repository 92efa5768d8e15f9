"""The study: nothing is trained twice, nothing of another study is touched, tables tell the scores."""

import csv
import json
import math
import os
import re
import signal
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import quick_compilation

from configs import study as study_config
from rf_jax.data import sources
from rf_jax.data.keys import generator
from rf_jax.evaluation import (
    prompts,
    rates,
    report,
    scoring,
    study,
    study_plan,
    study_plots,
    understanding,
)
from rf_jax.generation.sampler import Sampler
from rf_jax.learning import loop
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError

# Stands where configs/scenes.py does: `half` costs half the FLOPs a step of `whole`.
ARMS = """
from types import SimpleNamespace
from configs import base
from shrink import shrink

ARMS = {name: SimpleNamespace(needs=needs) for name, needs in {
    'first': (), 'whole': ('first',), 'half': ('first',), 'double': (), 'scratch': ()}.items()}

def get_config(name):
    config = shrink(base.get_config())
    config.data.sources, config.data.patch = 'scenes:aligned/32/count=64', 8
    config.data.max_text, config.tokenizer.vocabulary = 24, 512
    config.data.sizes = ((32, 1.0),)
    config.data.rows = {'half': 4, 'double': 16}.get(name, 8)
    if name == 'first':
        config.data.tasks.text_to_image = 0.0
    return config
"""
STEPS = 4


def small(folder, **changes):
    """A study of two arms and one seed with the arms above."""
    path = folder / 'arms.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text(ARMS)
    config = study_config.get_config()
    config.update_from_flattened_dict(
        {
            'runs': str(path), 'arms': 'whole,half', 'seeds': 1, 'steps': STEPS, 'first_steps': 2,
            'prompts': 3, 'pictures': 2, 'captions': 0, 'questions': 5, 'curve.points': 2,
            'curve.prompts': 2,
        }
        | changes
    )  # fmt: skip
    return config


def fingerprint(sampler, amount, codebook):
    """A score that depends on every parameter and on how much is asked, drawn in no time."""
    total = sum(float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(sampler.params))
    rng = generator(repr(total), repr(amount), codebook is not None)
    draws = sampler.config.data.tasks.text_to_image > 0 and amount.prompts

    def side(name):
        return {
            category: {
                'prompts': [f'{category} {i}' for i in range(amount.prompts)],
                'correct': rng.integers(0, 2, (amount.prompts, amount.pictures)).tolist(),
            }
            for category in prompts.CATEGORIES
        }

    kinds = {
        kind: {'correct': rng.integers(0, 2, amount.questions).tolist(), 'commonest': 0.5}
        for kind in ('exists', 'count')
    }
    values = {
        'generation': {name: side(name) for name in scoring.SIDES} if draws else {},
        'understanding': kinds,
        'distances': {'kid': float(rng.random())} if draws else {},
        'codebook': {} if codebook is None or not draws else {'used': float(rng.random())},
        'shown': {name: ['a red circle', 'two rings'] for name in scoring.SIDES} if draws else {},
    }
    pictures = {
        name: rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8) for name in values['shown']
    }
    return scoring.Score(values, pictures)


def scores(workdir):
    """{file: score} without the time it took."""
    found = {}
    for path in sorted(workdir.glob('*/scores/*.json')):
        found[str(path.relative_to(workdir))] = json.loads(path.read_text()) | {'seconds': 0}
    return found


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module', autouse=True)
def built():
    """Names of the runs that are built, on one device, with programs that are compiled quickly."""
    names, build = [], loop.build

    def spy(config, folder):
        names.append(folder.name)
        return build(config, folder, jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch, quick_compilation():
        patch.setattr(loop, 'build', spy)
        yield names


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """(config, workdir) of a study that nothing disturbed."""
    folder = tmp_path_factory.mktemp('study')
    config = small(folder)
    assert study.run(config, folder / 'study', fingerprint)
    return config, folder / 'study'


def test_cheaper_arms_go_on_to_equal_flops(finished):
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
        assert score['amount'] == {'prompts': 3, 'pictures': 2, 'captions': 0, 'questions': 5}
    assert spent['half'] == pytest.approx(spent['whole'])


@pytest.mark.parametrize(
    'own, dearest, steps', [(3.0, 3.0, 100), (2.0, 3.0, 150), (0.7, 1.0, 143), (1.0, 3.0001, 301)]
)
def test_equal_flops_are_spent_but_no_step_more(own, dearest, steps):
    assert study_plan.equal_flops_steps(100, own, dearest) == steps
    assert steps * own >= 100 * dearest * (1 - 1e-9) > (steps - 1) * own or steps == 100


def test_arms_start_from_the_stage_of_their_seed(finished):
    _, workdir = finished
    for name in ('half', 'whole'):
        kept = json.loads((workdir / f'{name}-s0' / 'config.json').read_text())
        assert kept['initialise_from'] == str(workdir / 'first-s0')
    names = ('first-s0', 'half-s0', 'whole-s0')
    assert len({(workdir / name / 'tokenizer.model').read_bytes() for name in names}) == 1
    assert Sampler.load(workdir / 'half-s0').config.steps == 8, 'an ordinary run folder'
    assert Sampler.load(workdir / 'half-s0', step=STEPS), 'also at equal steps'


class Crash(Exception):
    pass


def test_a_study_that_is_stopped_anywhere_ends_the_same(finished, built, tmp_path, monkeypatch):
    _, undisturbed = finished
    config, workdir, asked = small(tmp_path), tmp_path / 'study', []
    disturbed = {
        ('first-s0', 2): Crash,  # trained, not scored
        ('whole-s0', 2): signal.SIGTERM,  # between steps
        ('whole-s0', 4): Crash,
        ('half-s0', 4): Crash,  # in the middle, its checkpoint perhaps on disk
        ('half-s0', 6): signal.SIGTERM,
    }
    original = study.Scorer.at

    def at(self, step, *rest):
        what = disturbed.pop((self.piece.folder.name, step), None)
        if what is Crash:
            raise Crash
        if what:
            os.kill(os.getpid(), what)
        asked.append((self.piece.folder.name, step))
        return original(self, step, *rest)

    monkeypatch.setattr(study.Scorer, 'at', at)
    built.clear()
    ends = []
    while True not in ends and len(ends) < 10:
        try:
            ends.append(study.run(config, workdir, fingerprint))
        except Crash:
            ends.append(Crash)
    assert ends == [Crash, False, Crash, Crash, False, True] and not disturbed
    assert len(asked) == len(set(asked)), 'nothing is scored twice'
    assert built == [f'{name}-s0' for name in ['first'] * 2 + ['whole'] * 3 + ['half'] * 3]
    assert scores(workdir) == scores(undisturbed)
    for name in ('whole-s0', 'half-s0'):
        (step, state), other = (
            checkpoint.restore_numpy(folder / name / 'checkpoints')
            for folder in (workdir, undisturbed)
        )
        assert step == other[0]
        assert jax.tree.all(jax.tree.map(np.array_equal, state, other[1]))
    assert (workdir / 'results.csv').read_text() == (undisturbed / 'results.csv').read_text()


def test_a_finished_study_trains_nothing(finished, built):
    config, workdir = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}
    built.clear()
    assert study.run(config, workdir, fingerprint)
    assert not built
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob('*-s0/**/*')}
