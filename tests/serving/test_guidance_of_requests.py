"""Which guidance a request may ask for: what the programs compiled at the start can compute."""

from types import SimpleNamespace

import pytest

from configs import base
from rf_jax.generation.sampler import Sampler
from rf_jax.serving.errors import ApiError
from rf_jax.serving.server import Server


def server(**scales):
    config = base.get_config()
    config.sampling.update(scales)
    return Server(SimpleNamespace(sampler=Sampler(config, None, None, None)), 'tiny', [(64, 64)])


@pytest.mark.parametrize(('compiled', 'asked'), [
    ({'guidance_image': 1.5}, {'guidance_pixels': 7.5}),
    ({'guidance_image': 1.5}, {'guidance_image': 0.0}),
    ({'guidance_image': 1.5, 'guidance_text': 2.0}, {'guidance_text': 4.0}),
])  # fmt: skip
def test_scales_that_are_served(compiled, asked):
    own, given = server(**compiled).sampler.options(), server(**compiled).sampling(asked)
    for known, options in ((own, given), (own.without_images(), given.without_images())):
        assert options.weights().within(known.weights())


@pytest.mark.parametrize(('compiled', 'asked'), [
    ({'guidance_pixels': 1.0}, {'guidance_pixels': 3.0}),
    # With other images their branch is there anyway, without them it would be dropped.
    ({'guidance_image': 1.5}, {'guidance_text': 2.0}),
])  # fmt: skip
def test_scales_without_programs_are_refused(compiled, asked):
    with pytest.raises(ApiError, match='no programs for this guidance'):
        server(**compiled).sampling(asked)
