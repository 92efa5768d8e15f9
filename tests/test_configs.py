"""Every config of configs/ loads and, made tiny, trains."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import quick_compilation, shrink

import configs
from rf_jax.learning import loop

ROOT = Path(configs.__file__).parent
NAMES = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for path in ROOT.rglob('*.py')
    if path.stem not in ('__init__', 'study', 'ladder')  # these are no runs, but lists of them
)


@pytest.fixture(autouse=True)
def quick():
    with quick_compilation():
        yield


def test_configs_are_found():
    assert {'base', 'emoji', 'paper.joint'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_config_has_the_fields_of_base(name):
    config, base = (importlib.import_module(f'configs.{n}').get_config() for n in (name, 'base'))
    assert isinstance(config, ConfigDict)
    extra = set(dict(_leaves(config))) - set(dict(_leaves(base)))
    assert not extra, f'{extra} have no meaning in configs/base.py'
    assert ConfigDict(config.to_dict()) == config


def _leaves(config, above=''):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f'{above}{name}.')
        else:
            yield above + name, value


@pytest.mark.parametrize('name', NAMES)
def test_config_trains(name, tmp_path):
    config = shrink(importlib.import_module(f'configs.{name}').get_config())
    config.steps = 2
    run = loop.build(config, tmp_path, jax.devices()[:1])
    state = loop.train(run)
    assert int(state.step) == 2 and int(state.skipped) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state.params)))
    assert (tmp_path / 'checkpoints' / '2').is_dir() and (tmp_path / 'config.json').exists()
