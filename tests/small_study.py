"""A study small enough for tests: three arms, one stage, tiny models and a fake score."""

import contextlib
import json

import jax
import numpy as np
import pytest
from shrink import programs_once

from configs import study as study_config
from rf_jax.evaluation import scoring
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator
from rf_jax.scenes import prompts
from rf_jax.study import runner
from rf_jax.training import train_loop

# Replaces configs/scenes.py: a step of `half` costs half the FLOPs of one of `whole`.
ARMS = """
from types import SimpleNamespace
from configs import base
from shrink import shrink

STAGES = {'first': SimpleNamespace(needs=())}
ARMS = {name: SimpleNamespace(needs=needs) for name, needs in {
    'whole': ('first',), 'half': ('first',), 'double': ()}.items()}

def get_config(name):
    config = shrink(base.get_config())
    config.data.sources, config.data.patch_size = 'scenes:aligned/32/count=64', 8
    config.data.max_text_tokens, config.tokenizer.vocab_size = 24, 512
    config.data.sizes = ((32, 1.0),)
    config.data.batch_size = {'half': 4, 'double': 16}.get(name, 8)
    if name == 'first':
        config.data.tasks.text_to_image = 0.0
    return config
"""
STEPS = 4


def small(folder, **changes):
    """The config of a study with two of the arms above and one seed."""
    path = folder / 'arms.py'
    path.parent.mkdir(exist_ok=True)
    path.write_text(ARMS)
    config = study_config.get_config()
    config.update_from_flattened_dict(
        {
            'runs': str(path), 'arms': 'whole,half', 'seeds': 1, 'steps': STEPS, 'first_steps': 2,
            'prompts': 3, 'images': 2, 'captions': 0, 'questions': 5, 'curve.points': 2,
            'curve.prompts': 2,
        }
        | changes
    )  # fmt: skip
    return config


def fake_score(sampler, amount, codebook):
    """A fake score that depends on every parameter and on the amount, and takes no time."""
    total = sum(float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(sampler.params))
    rng = generator(repr(total), repr(amount), codebook is not None)
    draws = sampler.config.data.tasks.text_to_image > 0 and amount.prompts

    def side(name):
        return {
            category: {
                'prompts': [f'{category} {i}' for i in range(amount.prompts)],
                'correct': rng.integers(0, 2, (amount.prompts, amount.images)).tolist(),
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
        'variety': {'places': float(rng.random())} if draws else {},
        'autoencoder': {},
        'shown': {name: ['a red circle', 'two rings'] for name in scoring.SIDES} if draws else {},
    }
    images = {
        name: rng.integers(0, 255, (2, 32, 32, 3)).astype(np.uint8) for name in values['shown']
    }
    return scoring.Score(values, images)


def scores(workdir):
    """{file: score}, leaving out the time it took."""
    scores_by_file = {}
    for path in sorted(workdir.glob('*/scores/*.json')):
        scores_by_file[str(path.relative_to(workdir))] = json.loads(path.read_text()) | {
            'seconds': 0
        }
    return scores_by_file


def contents(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob('*')) if path.is_file()}


@contextlib.contextmanager
def one_device():
    """Builds all runs on one device; yields their names as built."""
    names, build = [], train_loop.build

    def spy(config, folder):
        names.append(folder.name)
        return build(config, folder, jax.devices()[:1])

    with pytest.MonkeyPatch.context() as patch, programs_once():
        patch.setattr(train_loop, 'build', spy)
        yield names


def assert_refused(config, workdir, match):
    before = contents(workdir)
    with pytest.raises(UserError, match=match):
        runner.run(config, workdir, fake_score)
    assert before == contents(workdir), 'nothing is written'
