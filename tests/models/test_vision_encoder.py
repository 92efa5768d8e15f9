"""vision_encoder.py against DINOv3's transformer spelled out, one image at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_inputs import (
    CHANNELS,
    EPSILON,
    HEAD_DIM,
    HEADS,
    REGISTERS,
    THETA,
    WIDTH,
    config,
    packed,
)

from rf_jax.data import patch_grid
from rf_jax.models.attention.reference import Reference
from rf_jax.models.vision_encoder import Connector, VisionEncoder, pool


@pytest.fixture(scope='module', params=[False, True], ids=['gelu', 'swiglu'])
def tower(request):
    """(apply, params) with all parameters away from their initial values."""
    module = VisionEncoder(config(request.param), Reference())

    zeros = jnp.zeros((1, 4, CHANNELS)), jnp.zeros((1, 4), jnp.int32), jnp.zeros((1, 4, 2))
    shapes = jax.eval_shape(lambda key: module.init(key, *zeros, 1)['params'], jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, shape):
        is_scale = jax.tree_util.keystr(path).endswith("scale']")
        return (0.3 * rng.normal(size=shape.shape) + is_scale).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(draw, shapes)

    def apply(params, patches, image, coords, images):
        return module.apply({'params': params}, patches, image, coords, images)

    return jax.jit(apply, static_argnums=4), params


def linear(p, x):
    return x @ p['kernel'] + p.get('bias', 0.0)


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * p['scale'] + p['bias']


def feedforward(p, x):
    if 'gate' in p:
        gate = linear(p['gate'], x)
        return linear(p['down'], gate / (1 + np.exp(-gate)) * linear(p['up'], x))
    up = linear(p['up'], x)
    return linear(p['down'], up * 0.5 * (1 + np.vectorize(math.erf)(up / math.sqrt(2))))


def turn(x, at, height, width):
    """Axial RoPE as in DINOv3: x [P, Dh], at [P, 2] row and column."""
    coords = 2 * (at + 0.5) / np.array([height, width]) - 1
    periods = THETA ** (4 * np.arange(HEAD_DIM // 4) / HEAD_DIM)
    angles = (2 * np.pi * coords[:, :, None] / periods).reshape(len(at), -1)
    angles = np.tile(angles, 2)
    half = HEAD_DIM // 2
    rotated = np.concatenate([-x[:, half:], x[:, :half]], -1)
    return x * np.cos(angles) + rotated * np.sin(angles)


def reference(params, patches, height, width):
    """One image: (features before the final norm, and after it), patches [P, C]."""
    at = patch_grid.patch_cells(height, width)
    prefix = params['class_and_registers']
    x = np.concatenate([prefix, linear(params['patch_embed'], patches)])
    first = len(prefix)
    for layer in range(2):
        p = jax.tree.map(lambda a, layer=layer: a[layer], params['layers'])
        y = layer_norm(p['attention_norm'], x)
        q, k, v = (linear(p[name], y) for name in ('query', 'key', 'value'))
        out = np.zeros_like(x)
        for h in range(HEADS):
            s = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
            qh, kh = q[:, s].copy(), k[:, s].copy()
            qh[first:] = turn(qh[first:], at, height, width)
            kh[first:] = turn(kh[first:], at, height, width)
            weights = np.exp(qh @ kh.T / np.sqrt(HEAD_DIM))
            out[:, s] = weights / weights.sum(1, keepdims=True) @ v[:, s]
        x = x + linear(p['output'], out) * p['attention_scale']
        x = x + feedforward(p['ffn'], layer_norm(p['ffn_norm'], x)) * p['ffn_scale']
    return x[first:], layer_norm(params['norm'], x)[first:]


def test_packed_images_equal_dinov3_on_each_alone(tower):
    """Two images of different shapes and padding in one row."""
    apply, params = tower
    sizes = [(4, 6), (2, 4)]
    patches, image, coords, slices = packed(sizes, 40, 3, seed=0)
    features, normed = apply(params, patches, image, coords, 3)
    assert jnp.isfinite(features).all() and jnp.isfinite(normed).all()
    for size, where in zip(sizes, slices):
        wanted, wanted_normed = reference(params, patches[0, where], *size)
        np.testing.assert_allclose(features[0, where], wanted, atol=2e-4, rtol=1e-4)
        np.testing.assert_allclose(normed[0, where], wanted_normed, atol=2e-4, rtol=1e-4)
    assert np.abs(features - normed).max() > 0.1  # features are taken before the final norm


def test_a_image_depends_only_on_itself(tower):
    apply, params = tower
    patches, image, coords, slices = packed([(4, 6), (2, 4)], 40, 3, seed=1)
    features, _ = apply(params, patches, image, coords, 3)
    other = patches.copy()
    other[0, slices[1].start :] += 1  # the second image and the padding
    changed, _ = apply(params, other, image, coords, 3)
    np.testing.assert_array_equal(features[0, slices[0]], changed[0, slices[0]])
    assert (features[0, slices[1]] != changed[0, slices[1]]).any(-1).all()


def test_parameters_have_dinov3s_names_and_no_key_bias(tower):
    _, params = tower
    block = params['layers']
    assert set(block['key']) == {'kernel'}
    for name in ('query', 'value', 'output'):
        assert set(block[name]) == {'kernel', 'bias'}
    assert params['class_and_registers'].shape == (1 + REGISTERS, WIDTH)


def test_pool_is_the_mean_of_the_patches_of_a_token():
    at = patch_grid.patch_cells(4, 6).astype(np.float32)
    centres = 2 * patch_grid.group_cells(4, 6) + 0.5
    np.testing.assert_allclose(pool(jnp.array(at)[None])[0], centres)


def test_connector_pools_before_its_mlp():
    x = jax.random.normal(jax.random.key(0), (1, 8, WIDTH))
    module = Connector(16)
    out, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
    assert out.shape == (1, 2, 16)
    within = jnp.concatenate([x[:, 3::-1], x[:, 4:]], 1)  # another order within the first token
    np.testing.assert_allclose(module.apply(variables, within), out, atol=1e-5)
