"""What a train step does to clean images: times and noise, where the model is left out."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rf_jax.training import flow, step

# Two rows of two images, of 4 and 16 patches; the second row has one image and padding.
IMAGE = np.array([[0] * 4 + [1] * 16, [0] * 16 + [-1] * 4])
COUNTS = np.array([[4, 16], [16, 0]])
SHAPE = *IMAGE.shape, 12
BATCH = {'pixel_image': jnp.asarray(IMAGE), 'pixel_counts': jnp.asarray(COUNTS)}


@pytest.fixture
def config():
    config = base.get_config()
    config.data.patch_size, config.flow.base_pixels = 16, 4 * 16**2  # those of the first image
    return config


def model_of(clean):
    """A model of these clean patches, without noise of its space."""
    bound = SimpleNamespace(clean=lambda batch: clean)
    return SimpleNamespace(
        bind=lambda variables: bound, space=SimpleNamespace(noise=lambda *arguments: {})
    )


def noisy(config, clean=0.0, key=0):
    found = step.add_noise(
        config, model_of(jnp.full(SHAPE, clean)), None, jax.random.key(key), BATCH
    )
    return {name: np.asarray(array) for name, array in found.items()}


def test_each_image_has_a_time_of_its_own_shifted_by_its_pixels(config):
    t = noisy(config)['t']
    assert len({*t[0, :4]}) == len({*t[0, 4:]}) == len({*t[1, :16]}) == 1
    assert len({t[0, 0], t[0, 4], t[1, 0]}) == 3
    config.flow.time_std, config.flow.shift = 1e-7, 3.0  # all draws are the mean
    t = noisy(config)['t']
    middle = jax.nn.sigmoid(config.flow.time_mean)
    for at, alpha in (((0, 0), 3.0), ((0, 4), 6.0), ((1, 0), 6.0)):
        assert t[at] == pytest.approx(float(flow.shift(middle, alpha)), rel=1e-5)


def test_noise_has_its_scale_and_is_no_draw_of_the_times(config):
    config.flow.time_mean, config.flow.time_std = 0.0, 1.0
    found = noisy(config)
    left = 1 - found['t'][..., None]
    unit = found['z'] / left  # the images are zero
    assert unit.std() == pytest.approx(1, abs=0.1)
    # With one key for both, the first values of the noise would be the draws of the times.
    t, alpha = found['t'][[0, 0, 1], [0, 4, 0]], np.array([1.0, 2.0, 2.0])
    draws = np.log(alpha * t / (1 - t))
    assert np.abs(unit[..., None] - draws).min() > 1e-5
    config.flow.noise_scale = 2.5
    np.testing.assert_allclose(noisy(config)['z'], 2.5 * found['z'], rtol=1e-5)


def test_noise_of_a_step_is_that_of_its_seed_and_number(config):
    """The same in a run that resumes, another in each step and run."""
    targets = SimpleNamespace(of_part=lambda state, rows: {})

    def of(seed, number):
        config.seed = seed
        state = SimpleNamespace(step=jnp.int32(number), params=None)
        model = model_of(jnp.zeros(SHAPE))
        return np.asarray(step.complete(config, model, targets, state, BATCH)['z'])

    np.testing.assert_array_equal(of(0, 3), of(0, 3))
    for other in (of(0, 4), of(1, 3)):
        assert (of(0, 3) != other).mean() > 0.99
