"""Pixels are standardised (encoder.pixel_mean, encoder.pixel_std) for the encoder alone."""

import jax
import numpy as np
import pytest
from shrink import shrink

from configs import base
from rf_jax.data import layout
from rf_jax.models import unified

CAPACITY = dict(zip(layout.SIZES, (0, 4, 0, 16, 1, 1)))
IMAGENET = {'pixel_mean': (0.485, 0.456, 0.406), 'pixel_std': (0.229, 0.224, 0.225)}


@pytest.fixture(scope='module')
def batch():
    """One image to read and the same image to generate."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 768), np.uint8)
    spans = [layout.Vision(4, 4, pixels), layout.Pixels(4, 4, pixels, image=1)]
    return layout.make_batch([[spans]], CAPACITY, 768)


def build(**changes):
    config = shrink(base.get_config())
    config.model.encoder.update(changes)
    return unified.build(config, 300)


@pytest.fixture(scope='module')
def params(batch):
    model = build()
    zeros = np.zeros((1, 16, 768), np.float32)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), batch, batch['input_group'], zeros, zeros[..., 0]
    )['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.normal(0.3, 0.3, a.shape).astype(np.float32), shapes)


def seen(model, params, batch, patches=None):
    """(vision tokens, features, clean patches), of given encoder inputs in place of the pixels'."""

    def run(bound):
        if patches is None:
            return bound.embed_vision(batch), bound.features(batch), bound.clean(batch)
        where = batch['vision_image'], batch['vision_coords'], 1
        features, normed = bound.encoder(patches, *where)
        return bound.connector(normed), features, bound.clean(batch)

    return jax.jit(lambda p: model.apply({'params': p}, method=run))(params)


def test_by_default_the_encoder_sees_pixels_from_minus_one_to_one(params, batch):
    model = build()
    found = seen(model, params, batch)
    wanted = seen(model, params, batch, unified.to_signed(batch['vision_pixels']))
    for a, b in zip(found, wanted):
        np.testing.assert_array_equal(a, b)


def test_the_encoder_sees_standardised_pixels_and_the_flow_does_not(params, batch):
    unit = np.float64(batch['vision_pixels']).reshape(1, 16, 16, 16, 3) / 255
    unit = (unit - IMAGENET['pixel_mean']) / IMAGENET['pixel_std']
    found = seen(build(**IMAGENET), params, batch)
    wanted = seen(build(), params, batch, np.float32(unit.reshape(1, 16, 768)))
    before = seen(build(), params, batch)
    for a, b, c in zip(found[:2], wanted, before):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
        assert np.abs(a - c).max() > 1e-3 * np.abs(c).max()
    np.testing.assert_array_equal(found[2], before[2])


@pytest.mark.parametrize('has_bias', [True, False])
def test_query_and_value_have_biases_or_not(has_bias, batch):
    model = build(query_value_bias=has_bias)
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), batch, method=model.features)['params']
    )
    block = shapes['encoder']['layers']
    for name, expected in {
        **dict.fromkeys(('query', 'value'), has_bias), 'key': False, 'output': True
    }.items():  # fmt: skip
        assert ('bias' in block[name]) == expected
