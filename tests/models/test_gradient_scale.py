"""model.vision_gradient_scale: what reaches the encoder through the images that are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import shrink

from configs import base
from rf_jax.data import layout
from rf_jax.models import unified
from rf_jax.models.unified import Unified

CAPACITY = dict(zip(layout.SIZES, (0, 4, 0, 0, 1, 0)))


@pytest.fixture(scope='module')
def batch():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 768), np.uint8)
    return layout.make_batch([[[layout.Vision(4, 4, pixels)]]], CAPACITY, 768)


def build(scale=None):
    config = shrink(base.get_config())
    if scale is None:
        with config.unlocked():
            del config.model.vision_gradient_scale
    else:
        config.model.vision_gradient_scale = scale
    model = unified.build(config, 300)

    def tokens(params, batch):
        return model.apply({'params': params}, batch, method=Unified.embed_vision)

    return model, tokens


@pytest.fixture(scope='module')
def params(batch):
    model, _ = build()
    init = jax.jit(lambda key: model.init(key, batch, method=Unified.embed_vision)['params'])
    return init(jax.random.key(0))


def value_and_gradients(scale, params, batch):
    weights = jax.random.normal(jax.random.key(1), (1, 4, 32))
    _, tokens = build(scale)
    return jax.jit(jax.value_and_grad(lambda p: jnp.sum(weights * tokens(p, batch))))(params)


def test_the_encoder_gets_a_share_of_the_gradient(params, batch):
    scale = 0.1
    value, wanted = value_and_gradients(1.0, params, batch)
    scaled_value, found = value_and_gradients(scale, params, batch)
    np.testing.assert_allclose(scaled_value, value, rtol=1e-5)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(wanted['encoder']))
    for name, factor in (('encoder', scale), ('connector', 1.0)):
        for one, other in zip(jax.tree.leaves(wanted[name]), jax.tree.leaves(found[name])):
            np.testing.assert_allclose(other, factor * one, rtol=1e-3, atol=1e-5)


def test_one_is_the_same_program(params, batch):
    before, now = (jax.make_jaxpr(tokens)(params, batch) for _, tokens in (build(), build(1.0)))
    assert str(before) == str(now)
