"""Settings of a chat as a user gives them: checked, and of plain types."""

import numpy as np
import pytest

from configs import base
from rf_jax.generation.chat import settings_of
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError


@pytest.fixture(scope='module')
def sampler():
    return Sampler(base.get_config(), None, None, None)


def test_a_size_may_be_a_list_and_a_seed_of_numpy(sampler):
    given = {'size': [np.int32(64), 32], 'seed': np.int64(3), 'temperature': np.float32(0.5)}
    made = settings_of(sampler, given | {'top_k': None, 'steps': 5, 'method': None})
    assert (made.size, made.seed, made.temperature, made.top_k) == ((64, 32), 3, 0.5, 0)
    # A seed is hashed with its type, and images of one size are a key of a table.
    assert type(made.seed) is int and {type(side) for side in made.size} == {int}
    assert made.sampling == sampler.options(steps=5)


@pytest.mark.parametrize(('given', 'said'), [
    ({'size': 64}, r'size=64: expected \(height, width\) in pixels'),
    ({'size': (64,)}, r'size=\(64,\): expected \(height, width\)'),
    ({'seed': 1.5}, r'seed=1\.5: expected an integer'),
    ({'seed': 'a'}, r"seed='a': expected an integer"),
    ({'top_k': -1}, r'top_k=-1: expected an integer of at least 0'),
    ({'max_tokens': 2.5}, r'max_tokens=2\.5: expected an integer of at least 0'),
    ({'temperature': 'hot'}, r"temperature='hot': expected a number of at least 0"),
    ({'temperature': -1}, r'temperature=-1: expected a number of at least 0'),
    ({'temperature': float('nan')}, r'temperature=nan'),
    ({'images': ['cat.png']}, r"images=\['cat.png'\]: expected True or False, whether the answer"),
    ({'images': 'false'}, r"images='false': expected True or False"),
    ({'top_p': 1.5}, r'top_p=1\.5: expected a number from 0 to 1'),
])  # fmt: skip
def test_mistakes_are_one_line(sampler, given, said):
    with pytest.raises(UserError, match=said):
        settings_of(sampler, given)
