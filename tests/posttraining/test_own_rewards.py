"""Reward files of the user: found, executed once, and refused in one line before a run begins."""

import numpy as np
import pytest

from rf_jax.posttraining import own_rewards
from rf_jax.posttraining.rewards import Prompt, Sample, Source
from rf_jax.runtime.errors import UserError


def test_a_reward_of_the_user_is_a_function_in_a_file(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('def brightness(prompt, source, sample):\n    return sample.image.mean()\n')
    (reward,) = own_rewards.load_all([f'{file}:brightness']).values()
    assert reward(Prompt(''), Source(), Sample(image=np.full((2, 2, 3), 7, np.uint8))) == 7


@pytest.mark.parametrize(
    'text, message',
    [
        ('brightness', 'expected a file and a function'),
        ('{tmp}/none.py:brightness', 'there is no file'),
        ('{tmp}/mine.py:darkness', "has no function 'darkness', but brightness"),
        ('{tmp}/broken.py:brightness', 'cannot be imported: .*no_such_module'),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_one_line(tmp_path, text, message):
    (tmp_path / 'mine.py').write_text('def brightness(*_):\n    return 0\n')
    (tmp_path / 'broken.py').write_text('import no_such_module\n')
    with pytest.raises(UserError, match=message):
        own_rewards.load_all([text.format(tmp=tmp_path)])


def test_two_functions_of_one_name_are_an_error(tmp_path):
    for name in ('a.py', 'b.py'):
        (tmp_path / name).write_text('def brightness(*_):\n    return 0\n')
    with pytest.raises(UserError, match='there are two functions brightness'):
        own_rewards.load_all([f'{tmp_path}/{name}:brightness' for name in ('a.py', 'b.py')])


def test_a_file_of_several_rewards_is_executed_once_and_finds_what_lies_beside_it(
    tmp_path, monkeypatch
):
    folder = tmp_path / 'my rewards'
    folder.mkdir()
    (folder / 'beside_the_reward.py').write_text('VALUE = 3\n')
    (folder / 'mine.py').write_text(
        'from pathlib import Path\n\nfrom beside_the_reward import VALUE\n\n'
        'with Path("executed").open("a") as file:\n    file.write("x")\n\n\n'
        'def a(p, s, x):\n    return VALUE\n\n\n'
        'def b(*asked, scale=2):\n    return scale * VALUE\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    found = own_rewards.load_all(['my rewards/mine.py:a', '~/my rewards/mine.py:b'])
    assert [each(Prompt(''), Source(), Sample()) for each in found.values()] == [3, 6]
    assert (tmp_path / 'executed').read_text() == 'x'


@pytest.mark.parametrize(
    'function, message',
    [
        ('def f(prompts, completions, **more):', r'f\(prompts, completions, \*\*more\) is called'),
        ('def f(prompt, source, sample, *, model):', r"called as f\(prompt, .*'model'"),
        ('import sys; sys.exit(2)\ndef f(*_):', r'cannot be imported: SystemExit\(2\)'),
    ],
)
def test_a_function_that_cannot_be_called_is_one_line(tmp_path, function, message):
    (tmp_path / 'mine.py').write_text(f'{function}\n    return 0\n')
    with pytest.raises(UserError, match=message):
        own_rewards.load_all([f'{tmp_path}/mine.py:f'])
