"""Two processes reinforce as one does, from the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import tiny_grpo

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

DEVICES = 4  # over all processes
STEPS = 3
# Texts and images by one policy; the reward is called by the first process alone.
CONFIG = """
from tiny_grpo import config_of

def get_config():
    return config_of({
        'grpo.episode': 'both', 'grpo.policies': ('text', 'representation'),
        'grpo.rewards': (('code_five', 1.0), ('words', 0.1)), 'grpo.kl.text': 0.1,
        'steps': 3, 'evaluation.samples': 0,
    })
"""


def reinforced(count, folder, start):
    """{step: all that was logged of it} of a run by `count` processes."""
    folder.mkdir()
    (folder / 'config.py').write_text(CONFIG)
    tests = Path(tiny_grpo.__file__)
    command = [sys.executable, '-m', 'rf_jax.reinforce', f'--config={folder / "config.py"}']
    command += [f'--workdir={folder / "run"}', f'--config.initialise_from={start}']
    command += [f'--reward={tests}:code_five']
    started = processes.start(count, command, folder / 'logs', DEVICES)
    assert started.wait() == [0] * count, (folder / 'logs' / '0.log').read_text()
    found = {}
    for line in (folder / 'run' / 'metrics.jsonl').read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values.pop('step'), {}).update(values)
    return found


def test_two_processes_reinforce_as_one_does(tmp_path):
    start = tmp_path / 'start'
    tiny_grpo.trained(start, tiny_grpo.code_five, {'steps': 1, 'optimizer.learning_rate': 1e-6})
    one, two = (reinforced(count, tmp_path / str(count), start) for count in (1, 2))
    assert set(one) == set(two) == set(range(1, STEPS + 1))
    for step, values in one.items():
        assert values['reward/spread_in_group'] > 0 and values['gradient_norm'] > 0
        for name, value in values.items():
            if name.startswith(('reward/', 'rollout/words', 'loss', 'gradient_norm', 'entropy_')):
                pair = np.array([two[step][name], value], float)  # None: no token of that kind
                err_msg = f'{name} of step {step}'
                np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-6, err_msg=err_msg)
