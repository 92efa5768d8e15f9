"""Fields of `sampling` in place of those of a run."""

import json

import pytest
from ml_collections import ConfigDict

from configs import base
from rf_jax.generation import image_sampling
from rf_jax.runtime.errors import UserError


def of_a_run():
    """A config as it is read from the folder of a run."""
    return ConfigDict(json.loads(base.get_config().to_json()))


def test_fields_are_changed_and_the_rest_is_kept():
    config, before = of_a_run(), of_a_run().sampling
    image_sampling.change(config, {'steps': 50, 'guidance_pixels': 2, 'method': 'heun'})
    image_sampling.change(config, {'guidance_interval': (0.2, 0.9), 'max_answer_tokens': 9})
    found = image_sampling.options(config)
    assert (found.steps, found.guidance_pixels, found.method) == (50, 2.0, 'heun')
    assert found.guidance_interval == (0.2, 0.9) and config.sampling.max_answer_tokens == 9
    assert config.sampling.temperature == before.temperature


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'guidance': 2.0}, r"sampling has no field 'guidance'; fields: .*guidance_pixels"),
        ({'sharding': ()}, r"no field 'sharding'"),
        ({'steps': 0}, r'sampling\.steps=0: expected'),
        ({'steps': 'many'}, r"sampling\.steps='many': expected"),
        ({'guidance_pixels': float('nan')}, r'sampling\.guidance_pixels=nan: expected'),
        ({'guidance_interval': (0.9, 0.1)}, r'the first time is later than the last'),
        ({'method': 'eular'}, r"sampling\.method='eular' is not known; did you mean 'euler'"),
        ({'method': 3}, r'sampling\.method=3'),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        image_sampling.change(of_a_run(), changes)
