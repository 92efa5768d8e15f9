"""denoiser.py: each patch has its own time, and the head starts at zero in float32."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict

from rf_jax.models.denoiser import PatchIn, PatchOut, TimeEmbedding, sinusoids


@partial(jax.jit, static_argnums=0)
def params_of(module, *inputs):
    return module.init(jax.random.key(0), *inputs)['params']


def test_time_embedding_is_sinusoids_and_an_mlp():
    t = jnp.array([[0.0, 0.25, 1.0]])
    module = TimeEmbedding(features=6, width=5)
    params = params_of(module, t)
    angles = np.asarray(t)[..., None] * np.array([1.0, 1000**0.5, 1000.0])
    x = np.concatenate([np.cos(angles), np.sin(angles)], -1)
    x = x @ params['up']['kernel'] + params['up']['bias']
    x = x / (1 + np.exp(-x)) @ params['down']['kernel'] + params['down']['bias']
    np.testing.assert_allclose(module.apply({'params': params}, t), x, atol=1e-4)


CELLS = jnp.zeros((1, 1, 2), jnp.int32)


def config(bottleneck, time_embed_dim, sinusoids=False):
    return FrozenConfigDict(
        {'bottleneck': bottleneck, 'time_embed_dim': time_embed_dim, 'sinusoids': sinusoids}
    )


def test_sinusoids_distinguish_all_cells():
    cells = jnp.asarray(np.stack(np.mgrid[:64, :64], -1).reshape(1, -1, 2))
    found = np.asarray(sinusoids(cells, 64))[0]
    assert found.shape == (4096, 64) and (np.abs(found) <= 1).all()
    near = found @ found.T / 32
    np.testing.assert_allclose(np.diag(near), 1.0, atol=1e-4)
    assert (near - 2 * np.eye(len(near))).max() < 0.995
    row = np.asarray(sinusoids(jnp.array([[3, 0], [3, 5]]), 64))
    np.testing.assert_array_equal(row[0, :32], row[1, :32])  # the half for rows
    # A linear map can tell which quarter of a token a patch is.
    quarter = (np.arange(6) % 2)[:, None]
    lines = np.asarray(sinusoids(jnp.stack([jnp.arange(6)] * 2, -1), 64))[:, :32]
    read = lines @ np.linalg.lstsq(lines, quarter, rcond=None)[0]
    np.testing.assert_allclose(read, quarter, atol=1e-3)


def test_patches_carry_their_cell_if_configured():
    z, t = jnp.zeros((1, 2, 12)), jnp.zeros((1, 2))
    cells = jnp.array([[[0, 0], [0, 1]]])
    plain, placed = (PatchIn(config(0, 8, asked), 16) for asked in (False, True))
    params = params_of(plain, z, t, cells)
    moved = placed.apply({'params': params}, z, t, cells) - plain.apply(
        {'params': params}, z, t, cells
    )
    np.testing.assert_allclose(moved, sinusoids(cells, 16), atol=1e-6)


def test_near_times_are_distinguished_in_bfloat16_models():
    module = PatchIn(config(0, 32), 64)
    z, t = jnp.zeros((1, 2, 12), jnp.bfloat16), jnp.array([[0.5, 0.501]])
    params = params_of(module, z, t, CELLS)
    out = module.apply({'params': params}, z, t, CELLS)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out[0, 0] - out[0, 1]).max() > 0.05


@pytest.mark.parametrize('bottleneck', [0, 3])
def test_patches_are_embedded_by_a_linear_map(bottleneck):
    module = PatchIn(config(bottleneck, 8), 16)
    z = jax.random.normal(jax.random.key(1), (2, 4, 12))
    t = jnp.full((2, 4), 0.3)
    params = params_of(module, z, t, CELLS)
    still = module.apply({'params': params}, jnp.zeros_like(z), t, CELLS)
    moved = np.asarray(module.apply({'params': params}, z, t, CELLS) - still)
    kernel = params['patch']['kernel']
    if bottleneck:
        kernel = params['bottleneck']['kernel'] @ kernel
    np.testing.assert_allclose(moved, z @ kernel, atol=1e-5)
    assert np.linalg.matrix_rank(np.asarray(kernel)) == (bottleneck or 12)


def test_the_head_starts_at_zero_and_outputs_float32():
    x = jax.random.normal(jax.random.key(0), (1, 4, 16), jnp.bfloat16)
    params = params_of(PatchOut(12), x)
    out = PatchOut(12).apply({'params': params}, x)
    assert out.dtype == jnp.float32 and not out.any()
    gradient = jax.grad(lambda p: PatchOut(12).apply({'params': p}, x).sum())(params)
    assert gradient['patch']['kernel'].any()  # it can leave zero
