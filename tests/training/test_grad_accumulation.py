"""A batch in parts needs the memory of one part, with the codes, noise and losses of the whole."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry2x32_p
from shrink import shrink

from configs import base
from rf_jax.models import microbatches, quantizer
from rf_jax.runtime.mesh import batch_sharding, make_mesh
from rf_jax.training import jitted

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def temporary():
    """Bytes of temporaries of a train step with very large similarities, by number of parts."""
    config = shrink(base.get_config())
    config.data.capacity.update(text=8, vision=4, representation=2, pixels=256, vision_images=1)
    config.model.representation.codebook_size = 16_384
    config.model.backbone.layers = config.model.encoder.layers = 1

    def found(count):
        config.optimizer.grad_accum_steps = count
        built = jitted.build(config, 384, make_mesh(config.mesh, jax.devices()[:1]))
        compiled = built.train_step.lower(built.abstract, built.batch()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return {count: found(count) for count in (1, 4)}


def test_four_parts_need_about_a_quarter_of_the_memory(temporary):
    print('temporaries by parts:', temporary)
    similarities = 8 * 64 * 16_384 * 4  # of the whole batch, float32
    assert temporary[1] > 2 * similarities
    assert temporary[4] < 0.35 * temporary[1], temporary


@pytest.mark.parametrize('mode', ['printed', 'sinkhorn', 'nearest'])
def test_codes_of_parts_are_those_of_the_whole_batch(mode):
    config = base.get_config()
    config.model.representation.quantizer.update(mode=mode, temperature=0.1, sinkhorn_iterations=3)
    assign = quantizer.build(config)
    keys = jax.random.split(jax.random.key(0), 3)
    z, codebook = (
        quantizer.normalise(jax.random.normal(k, (n, 8))) for k, n in zip(keys, (96, 32))
    )
    valid = jax.random.bernoulli(keys[2], 0.8, (96,))
    whole, four = (jax.jit(partial(assign, count=n))(z, codebook, valid) for n in (1, 4))
    np.testing.assert_array_equal(np.asarray(whole)[valid], np.asarray(four)[valid])
    assert len(set(np.asarray(whole).tolist())) > 16
    known = jnp.arange(32) < 20
    near = [quantizer.nearest_similarity(z, codebook, known, n) for n in (1, 4)]
    np.testing.assert_allclose(*near, rtol=1e-6)
    assert np.asarray(quantizer.nearest_similarity(z, codebook, known & False)).max() == -1


@pytest.mark.parametrize('shape', [(8, 5, 7), (12, 3)])
def test_a_part_gets_the_noise_that_its_rows_get_in_the_whole_batch(shape):
    key = jax.random.fold_in(jax.random.key(3), 9)
    whole = np.asarray(jax.random.normal(key, shape))
    mesh = make_mesh(base.get_config().mesh, jax.devices()[: shape[0] // 4])
    part = jax.jit(
        lambda number: microbatches.Part(number, 4).normal(key, (shape[0] // 4, *shape[1:])),
        out_shardings=batch_sharding(mesh),
    )
    for number in range(4):
        np.testing.assert_array_equal(part(number), whole[number::4])
        np.testing.assert_array_equal(microbatches.Part(number, 4).take(whole), whole[number::4])


def test_noise_of_a_batch_of_more_than_2_to_the_32_values():
    """Their indices have 64 bits; the whole batch would not fit in memory."""
    data, size = jax.random.key_data(jax.random.key(3)), 2**20 + 7
    place = jnp.concatenate([data, jnp.array([40_000, 90_000], jnp.uint32)])
    bits = microbatches._strided_bits(place, 32, (2, size))
    for row, column in ((0, 5), (1, size - 1)):
        index = (40_000 + 90_000 * row) * size + column
        assert index > 2**32
        high, low = jnp.uint32([index >> 32]), jnp.uint32([index % 2**32])
        first, second = threefry2x32_p.bind(*data, high, low)
        assert bits[row, column] == (first ^ second)[0]
