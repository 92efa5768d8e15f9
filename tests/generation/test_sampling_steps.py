"""Single steps of sampling, where the model is left out: codes, noise, times, guidance."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rf_jax.generation import image_sampling, kv_cache
from rf_jax.generation.guidance import ALL, IMAGES, NONE
from rf_jax.models.representation import forcing
from rf_jax.training import flow

SHARES = np.array([0.5, 0.3, 0.15, 0.05], np.float32)


@pytest.mark.parametrize(
    'temperature, top_k, right',
    [
        (1.0, 0, SHARES),
        (1.0, 2, [0.625, 0.375, 0, 0]),
        (0.5, 0, SHARES**2 / (SHARES**2).sum()),
        (0.0, 0, [1, 0, 0, 0]),
    ],
)
def test_codes_follow_the_distribution_anew_at_each_place(temperature, top_k, right):
    rows, right = 4000, np.asarray(right)
    keys = jax.random.split(jax.random.key(0), rows)
    logits = jnp.broadcast_to(jnp.log(SHARES), (rows, 4))
    codes = [
        np.asarray(forcing.KIND.sample(logits, jnp.int32(place), keys, temperature, top_k))
        for place in (0, 1, 0)
    ]
    for found in codes:
        np.testing.assert_allclose(np.bincount(found, minlength=4) / rows, right, atol=0.03)
    np.testing.assert_array_equal(codes[0], codes[2])
    assert (codes[0] == codes[1]).mean() == pytest.approx((right**2).sum(), abs=0.03)


def test_each_scale_weights_its_own_step():
    options = image_sampling.Options(
        guidance_representation=2.0, guidance_pixels=3.0, guidance_text=5.0, guidance_image=7.0
    )
    weights = options.weights()
    assert weights.pixels == {
        (ALL, True): 5,
        (IMAGES, True): 2,
        (NONE, True): -4,
        (NONE, False): -2,
    }
    assert weights.tokens == {ALL: 2, IMAGES: 5, NONE: -6}


@pytest.fixture
def still(monkeypatch):
    """A model that predicts 1 in the first branch and 0 in the others, for images of 2 x 2 patches
    of 16 pixels; (config, z [1, P, Z] after the steps [first, last) from z = 1).
    """
    monkeypatch.setattr(kv_cache, 'after', lambda model, params, row, cache, x, lengths: x)
    bound = SimpleNamespace(
        embed_patches=lambda z, t, cells: z,
        predict=lambda x: jnp.zeros_like(x).at[0].set(1.0),
    )
    model = SimpleNamespace(bind=lambda variables: bound, flow_channels=6)
    config = base.get_config()
    config.data.patch_size, config.flow.base_pixels, config.flow.shift = 16, 16**2, 1.5
    row = {
        'pixels': jnp.zeros((1, 4, 768), jnp.uint8),
        'pixel_counts': jnp.full((1, 1), 4),
        'pixel_cells': jnp.zeros((1, 4, 2), jnp.int32),
    }
    branches = {(ALL, True): 3.0, (NONE, False): -2.0}
    rows = dict.fromkeys(branches, row)
    caches = dict.fromkeys((ALL, NONE), (jnp.zeros((1, 1, 1, 1, 1)),))

    def moved(first, last, **options):
        given = image_sampling.Options(steps=4, **options), None, rows, caches
        z = jnp.ones((1, 4, 6))
        return image_sampling.integrate(model, config, *given, z, first, last, branches)

    return model, config, rows, moved


def test_a_step_goes_to_the_time_of_the_pixels_of_the_image(still):
    """With four patches the shift is twice that of one; the guided prediction is 3."""
    _, _, _, moved = still
    t = float(flow.shift(jnp.float32(0.25), 3.0))
    np.testing.assert_allclose(moved(0, 1), 1 + t * (3 - 1), rtol=1e-5)


def test_outside_its_interval_there_is_no_guidance(still):
    """Only the prediction of the whole context is left, which is 1, where z already is."""
    _, _, _, moved = still
    np.testing.assert_allclose(moved(0, 1, guidance_interval=(0.1, 1.0)), 1, rtol=1e-6)
    assert float(moved(1, 2, guidance_interval=(0.1, 1.0)).min()) > 1.1


def test_the_flow_begins_at_noise_of_its_scale(still):
    model, config, rows, _ = still
    keys = jax.random.split(jax.random.key(0), 64)
    one = image_sampling.noise(model, config, rows, keys)
    assert float(one.std()) == pytest.approx(1, abs=0.1)
    assert len(np.unique(one)) > 0.99 * one.size
    config.flow.noise_scale = 2.5
    np.testing.assert_allclose(image_sampling.noise(model, config, rows, keys), 2.5 * one)
