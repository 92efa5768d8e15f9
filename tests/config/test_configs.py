"""Every config of configs/ loads and, reduced to a tiny size, trains."""

import jax
import numpy as np
import pytest
from config_names import NAMES, get_config
from ml_collections import ConfigDict
from shrink import shrink, trained_once

from configs.posttraining import grpo
from rf_jax.posttraining import collector, policy
from rf_jax.training import train_loop


def test_all_configs_are_found():
    assert {'base', 'emoji', 'paper:joint'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_config_has_the_fields_of_base(name):
    config, base = get_config(name), get_config('base')
    assert isinstance(config, ConfigDict)
    known = {'grpo': grpo.fields()} if 'grpo' in config else {}
    extra = set(dict(_leaves(config))) - set(dict(_leaves(ConfigDict({**base, **known}))))
    assert not extra, f'{extra} have no meaning in configs/base.py'
    assert ConfigDict(config.to_dict()).lock() == config


def _leaves(config, above=''):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f'{above}{name}.')
        else:
            yield above + name, value


def trained(config, folder):
    """Of a config with `grpo`, by its rollouts, which are rewarded by the model as it starts."""
    if 'grpo' not in config:
        return train_loop.train(train_loop.build(config, folder, jax.devices()[:1]))
    collector.check(config)
    run = train_loop.build(config, folder, jax.devices()[:1], policy.objective)
    return train_loop.train(run, feed=collector.Collector(run, run.initialise().ema))


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_config_trains(name, tmp_path):
    config = shrink(get_config(name))
    config.steps = 2
    with trained_once():
        state = trained(config, tmp_path)
    assert int(state.step) == 2 and int(state.skipped) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    assert (tmp_path / 'checkpoints' / '2').is_dir() and (tmp_path / 'config.json').exists()
