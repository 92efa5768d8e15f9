"""GRPO on a trained run of yours: its own config, with `grpo`.

python -m rf_jax.reinforce --config=configs/posttraining/own.py:runs/emoji \\
    --workdir=runs/brighter --reward=my_rewards.py:brightness \\
    --config.grpo.rewards="(('brightness', 1.0),)"

Prompts are the captions of its data. `own.py:runs/emoji,both` names the policies of grpo.py, by
default `representation`; `own.py:runs/emoji@4000` starts at this step.
"""

import json

from ml_collections import ConfigDict

from configs import base
from configs.posttraining import grpo
from rf_jax.data import spans
from rf_jax.generation import inputs
from rf_jax.runtime import renamed_fields, storage
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training import weight_sources


def get_config(run: str = ''):
    run, _, policies = run.partition(',')
    field = 'configs/posttraining/own.py:policies'
    trained, rates = choose(field, policies or 'representation', grpo.POLICIES)
    config = config_of(run)
    config.initialise_from = run
    grpo.start(config, steps=200)
    config.optimizer.decay_steps = 0
    config.evaluation.samples = min(config.evaluation.samples, 64)  # the run itself is short
    height, width = inputs.largest_square(config)
    patches, pool = height * width // config.data.patch_size**2, spans.pool_of(config)
    grpo.reinforce(config, trained, rates, patches)
    config.data.capacity.representation = patches // pool**2 + 1 if pool else 0
    config.grpo.prompts = 'captions'
    return config


def config_of(run: str) -> ConfigDict:
    """The config of a run, with the fields that it was trained without. Raises UserError."""
    require(run, 'give a run: --config=configs/posttraining/own.py:runs/emoji')
    config = base.get_config()
    config.initialise_from = run
    path = weight_sources.listed(config)[0].folder / 'config.json'
    try:
        found = json.loads(storage.read(path))
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None
    renamed_fields.check(found, path)
    _fill(config, found)
    return config


def _fill(config: ConfigDict, values: dict) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and name in config:
            _fill(config[name], value)
        elif name in config:
            config[name] = _tuples(value)


def _tuples(value):
    """JSON has lists where configs have tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
