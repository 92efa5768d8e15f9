"""Configs at the size of the paper have its values, or a reason to keep those of base.py."""

import importlib

import numpy as np
import pytest

from configs import base, paper
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, ema
from rf_jax.training.checks import flatten

STAGES = ('alignment', 'joint', 'continued')


def stage(name, size='30B-A3B'):
    return paper.get_config(f'{name}/{size}')


def weights(stages, steps, new=False):
    """Weight of the parameters of each step in the average after `steps` steps of the last stage;
    the initial parameters come first.
    """
    own = np.ones(1)
    for name in stages:
        config = stage(name)
        config.initialise_from = 'the stage before'
        config.initialise_new = (r'^leaf',) if new else ()
        many = steps if name == stages[-1] else config.steps
        # With trees that differ by 1, the average gives the weight of the newest.
        at = np.arange(many, dtype=np.int32)
        newest = np.asarray(
            ema.average(config, {'leaf': np.zeros(many)}, {'leaf': np.ones(many)}, at)['leaf'],
            np.float64,
        )
        left = np.concatenate([np.cumprod((1 - newest)[::-1])[::-1], [1.0]])
        own = np.concatenate([own * left[0], newest * left[1:]])
    return own


def effective(weights):
    """Number of equally weighted steps with the same variance of their mean."""
    return 1 / np.sum(weights**2)


@pytest.mark.parametrize('size', paper.MODELS)
@pytest.mark.parametrize('encoder', [False, True])
def test_paper_configs_average_as_many_steps_as_the_paper_from_soon_after_the_start(size, encoder):
    c = stage('alignment', size).ema
    decay = c.encoder_decay if encoder else c.decay
    assert decay == 0.9999, 'paper'
    for step in (1000, 10_000, 50_000):
        covered = ema.window(decay, c.warmup_offset, step)
        assert covered >= 0.99 * min(step, 10_000), f'{covered:.0f} of the last {step} steps'


@pytest.mark.parametrize('steps', [1000, 10_000, 50_000])
def test_new_parameters_of_the_joint_stage_average_as_many_steps_as_the_paper(steps):
    own = weights(['joint'], steps, new=True)
    # The paper's average over these steps alone, without the random initial weights.
    theirs = 0.9999 ** np.arange(steps)[::-1]
    theirs /= theirs.sum()
    assert effective(own) > 0.95 * effective(theirs)
    assert own[0] < 1.5 / steps, 'random weights count for no more than one step'
    ages = np.arange(steps + 1)[::-1]
    assert ages @ own > 0.95 * (ages[1:] @ theirs)


@pytest.mark.parametrize('steps', [1000, 10_000])
def test_a_stage_continues_the_average_of_the_previous_one(steps):
    chain = weights(['alignment', 'joint', 'continued'], steps)
    theirs = 0.9999 ** np.arange(len(chain))[::-1]
    assert effective(chain) > 0.95 * effective(theirs / theirs.sum())
    newest = chain[-steps:].sum()
    assert newest == pytest.approx(1 - 0.9999**steps, rel=1e-3), 'no reset at the start of a stage'


def test_only_the_joint_stage_copies_generation_groups_from_the_language_model():
    assert 'backbone/layers/understanding' in dict(stage('joint').initialise_as).values()
    last = stage('continued')
    assert not last.initialise_new and not last.initialise_as and not last.ema.warmup


def test_laptop_configs_warm_up_as_before():
    for name in ('emoji', 'scenes', 'stages'):
        config = importlib.import_module(f'configs.{name}').get_config()
        assert config.ema.warmup_offset == 10.0
    assert ema.window(0.9999, 10.0, 10_000) == pytest.approx(1112.2, abs=0.1)


def named(field):
    """The entry of KEPT that covers a field: its own, or that of an enclosing group."""
    parts = field.split('.')
    groups = ('.'.join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((group for group in groups if group in paper.KEPT), None)


def test_every_field_is_set_for_the_paper_or_has_a_reason_not_to_be():
    before = flatten(base.get_config().to_dict())
    kept = dict.fromkeys(before, True)
    for name in STAGES:
        for size in paper.MODELS:
            now = flatten(stage(name, size).to_dict())
            for field in before:
                kept[field] &= now[field] == before[field]
    unexplained = [field for field in before if kept[field] and not named(field)]
    assert not unexplained, 'set it in configs/paper.py, or give the reason there, in KEPT'
    used = {named(field) for field in before if kept[field]}
    assert used == set(paper.KEPT), 'KEPT names fields that are set, or are not there'


@pytest.mark.parametrize('field, value', [('decay', 1.0), ('warmup_offset', 1.0)])
def test_a_decay_of_1_is_an_error(field, value):
    config = base.get_config()
    config.ema[field] = value
    with pytest.raises(UserError, match=rf'ema\.{field}=1\.0: expected'):
        checks.check(config)
