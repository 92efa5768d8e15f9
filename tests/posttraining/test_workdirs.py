"""What the folder of a run says about reinforcement: which command made it, with which rewards."""

import json

import pytest
from shrink import shrink
from tiny_grpo import bright, config_of

from configs import base
from rf_jax.posttraining import collector
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, train_loop


@pytest.mark.parametrize(
    'before, now, command',
    [
        (shrink(base.get_config()), config_of(), 'train'),
        (config_of(), shrink(base.get_config()), 'reinforce'),
    ],
    ids=['train', 'reinforce'],
)
def test_a_run_of_the_other_command_is_not_gone_on_with(
    tmp_path, monkeypatch, before, now, command
):
    (tmp_path / 'config.json').write_text(before.to_json_best_effort())
    monkeypatch.setattr(checkpoint, 'exists_in', lambda folder: True)
    message = rf'--workdir={tmp_path} is a run of rf_jax\.{command}: give another .*initialise_from'
    with pytest.raises(UserError, match=message):
        train_loop.build(now, tmp_path)
    checks.check_command(before, tmp_path)


def test_a_workdir_remembers_the_rewards_of_the_user(tmp_path, caplog):
    config = config_of({'grpo.rewards': (('judge', 0), ('bright', 2))})
    collector.name_rewards(config, {'bright': bright, 'darker': bright})
    assert config.grpo.rewards == (('judge', 0.0), ('bright', 2.0), ('darker', 1.0))
    (tmp_path / 'config.json').write_text(json.dumps(json.loads(config.to_json_best_effort())))
    checks.warn_of_changes(config, tmp_path)
    assert not caplog.messages
    without = config_of({'grpo.rewards': (('judge', 1),)})
    collector.name_rewards(without, {})
    checks.warn_of_changes(without, tmp_path)
    (line,) = caplog.messages
    assert line.startswith('grpo.rewards is ') and 'darker' in line


def test_a_reward_that_the_user_forgot_is_an_error():
    config = config_of({'grpo.rewards': (('bright', 2),)})
    with pytest.raises(UserError, match=r"grpo\.rewards='bright' is not known"):
        collector.name_rewards(config, {})
