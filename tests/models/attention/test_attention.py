"""Mask, rotary positions and attention against slow spelled-out versions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rf_jax.models import layers
from rf_jax.models.attention import masks, reference
from rf_jax.models.attention.sharded import ShardedAttention
from rf_jax.runtime.mesh import AXES, make_mesh

SECTIONS = (16, 8, 8)


def one_coordinate(x, position, theta):
    """Qwen3's rotary embedding in numpy: x [L, Dh], position [L]; rotate_half pairs halves."""
    half = x.shape[-1] // 2
    inverse = 1.0 / theta ** (np.arange(0, 2 * half, 2) / (2 * half))
    angles = np.concatenate([position[:, None] * inverse] * 2, -1)
    rotated = np.concatenate([-x[:, half:], x[:, :half]], -1)
    return x * np.cos(angles) + rotated * np.sin(angles)


@pytest.mark.parametrize('sections', [SECTIONS, (32, 0, 0), (1, 1, 30)])
def test_equal_coordinates_give_one_dimensional_rope(sections):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 9, 2, 64)).astype(np.float32)
    order = np.array([0, 1, 2, 3, 5, 8, 13, 100, 700], np.float32)
    position = jnp.repeat(jnp.array(order)[None, :, None], 3, -1)
    angles = layers.rotary_angles(position, 64, sections, 1e4)
    given = layers.rotate(jnp.array(x), angles)
    for head in range(2):
        wanted = one_coordinate(x[0, :, head], order, 1e4)
        np.testing.assert_allclose(given[0, :, head], wanted, atol=2e-4)


def test_each_coordinate_rotates_its_share_of_the_frequencies():
    turned = []
    for coordinate in range(3):
        position = jnp.zeros((1, 1, 3)).at[..., coordinate].set(1.0)
        angles = np.asarray(layers.rotary_angles(position, 64, SECTIONS, 1e4))[0, 0]
        turned.append(angles != 0)
    assert [t.sum() for t in turned] == list(SECTIONS)
    assert (np.sum(turned, 0) == 1).all()
    for where in turned:  # high and low ones alike
        assert where[:4].any() and where[-4:].any()


def test_products_depend_on_relative_positions():
    rng = np.random.default_rng(1)
    q, k = jnp.array(rng.normal(size=(2, 1, 5, 1, 64)), jnp.float32)
    position = jnp.array(rng.uniform(0, 20, (1, 5, 3)), jnp.float32)

    def products(shift):
        angles = layers.rotary_angles(position + jnp.array(shift), 64, SECTIONS, 1e4)
        turned = layers.rotate(q, angles), layers.rotate(k, angles)
        return np.einsum('blhd,bmhd->blm', *turned)

    still = products((0.0, 0.0, 0.0))
    np.testing.assert_allclose(products((3.0, 11.0, 7.0)), still, atol=1e-3)
    only_queries = layers.rotary_angles(position + 1, 64, SECTIONS, 1e4)
    angles = layers.rotary_angles(position, 64, SECTIONS, 1e4)
    moved = np.einsum('blhd,bmhd->blm', layers.rotate(q, only_queries),
                      layers.rotate(k, angles))  # fmt: skip
    assert np.abs(moved - still).max() > 0.1


@pytest.mark.parametrize(('heads', 'kv_heads'), [(4, 4), (4, 2), (6, 2), (4, 1)])
def test_grouped_query_attention_equals_a_loop(heads, kv_heads):
    rng = np.random.default_rng(heads + kv_heads)
    rows, queries, keys, head_dim = 2, 5, 7, 8
    q = rng.normal(size=(rows, queries, heads, head_dim)).astype(np.float32)
    k, v = rng.normal(size=(2, rows, keys, kv_heads, head_dim)).astype(np.float32)
    mask = rng.random((rows, queries, keys)) < 0.6
    mask[..., 0] = True
    wanted = np.zeros_like(q)
    for b in range(rows):
        for i in range(queries):
            for h in range(heads):
                g = h // (heads // kv_heads)
                seen = np.flatnonzero(mask[b, i])
                logits = k[b, seen, g] @ q[b, i, h] / np.sqrt(head_dim)
                weights = np.exp(logits - logits.max())
                wanted[b, i, h] = weights / weights.sum() @ v[b, seen, g]
    np.testing.assert_allclose(jax.jit(reference.attend)(q, k, v, mask), wanted, atol=1e-5)


def test_a_query_without_visible_keys_stays_finite():
    x = jnp.ones((1, 3, 2, 4))
    mask = jnp.zeros((1, 3, 3), bool)
    assert jnp.isfinite(reference.attend(x, x, x, mask)).all()
    gradient = jax.grad(lambda y: reference.attend(y, y, y, mask).sum())(x)
    assert jnp.isfinite(gradient).all()


def test_masked_keys_have_no_influence_at_all():
    rng = np.random.default_rng(2)
    q, k, v = jnp.array(rng.normal(size=(3, 1, 4, 2, 8)), jnp.float32)
    mask = jnp.tril(jnp.ones((1, 4, 4), bool))
    out = reference.attend(q, k, v, mask)
    changed = reference.attend(q, k.at[:, 3].mul(1e4), v.at[:, 3].add(1e6), mask)
    np.testing.assert_array_equal(out[:, :3], changed[:, :3])
    assert (out[:, 3] != changed[:, 3]).any()


def test_softmax_is_float32_whatever_the_inputs():
    """Logits of about 300 that differ by 1 in 256 are equal in bfloat16, not in float32."""
    q = jnp.array([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    k = jnp.array([[16.0, 0.0], [16.0, 0.5]], jnp.bfloat16).reshape(1, 2, 1, 2)
    v = jnp.array([[0.0, 0.0], [1.0, 1.0]], jnp.bfloat16).reshape(1, 2, 1, 2)
    out = reference.attend(q, k, v, jnp.ones((1, 1, 2), bool))
    assert out.dtype == jnp.bfloat16
    share = 1 / (1 + np.exp(-0.5 / np.sqrt(2)))
    np.testing.assert_allclose(float(out[0, 0, 0, 0]), share, atol=4e-3)


def test_visible_compares_every_field():
    fields = ('segment', 'order', 'reach', 'block')

    def one(*values):
        return {name: jnp.array([[value]], jnp.int32) for name, value in zip(fields, values)}

    def is_visible(query, key):
        return bool(masks.visible(one(*query), one(*key))[0, 0, 0])

    assert is_visible((1, 5, 5, 0), (1, 5, 5, 0))
    assert not is_visible((1, 5, 5, 0), (1, 6, 6, 0))
    assert not is_visible((1, 5, 5, 0), (2, 4, 4, 0))
    never = 2**30
    assert is_visible((1, never, 3, 2), (1, never, 3, 2))
    assert not is_visible((1, never, 3, 2), (1, never, 3, 3))
    assert not is_visible((1, never, 3, 2), (2, never, 3, 2))
    assert not is_visible((0, never, -1, 0), (0, never, -1, 0))


def test_the_drawn_example_is_the_mask_of_its_integers():
    """The two tables in the docstring of masks.py: the integers, and the mask that follows."""
    _, integers, mask = re.split(r'\n    token .*\n|\n +red +apple .*\n', masks.__doc__)
    rows = [line.split() for line in integers.splitlines() if line.startswith('    ')]
    assert [len(row) for row in rows] == [5] * 5
    values = [[masks.NEVER if x == 'NEVER' else int(x) for x in row[1:]] for row in rows]
    row = dict(zip(masks.FIELDS, np.array(values, np.int32).T[:, None]))
    drawn = [line.split() for line in mask.splitlines() if line.startswith('    ')]
    assert [line[0] for line in drawn] == [line[0] for line in rows]
    drawn = np.array([line[1:] for line in drawn]) == 'x'
    np.testing.assert_array_equal(masks.visible(row, row)[0], drawn)
    assert 0 < drawn.sum() < drawn.size


@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_heads_on_a_mesh_take_the_keys_of_their_own_group(kv_heads):
    """On four devices along `tensor`, with fewer key/value heads than devices and as many."""
    rng = np.random.default_rng(kv_heads)
    q, k, v = (
        jnp.asarray(rng.normal(size=(2, 6, heads, 8)), jnp.float32)
        for heads in (8, kv_heads, kv_heads)
    )
    tokens = {name: jnp.ones((2, 6), jnp.int32) for name in masks.FIELDS}
    alone = reference.Reference()
    shared = ShardedAttention(alone, make_mesh(dict.fromkeys(AXES, 1) | {'data': 2, 'tensor': 4}))
    found = shared(q, k, v, shared.prepare(tokens, tokens))
    np.testing.assert_allclose(found, alone(q, k, v, alone.prepare(tokens, tokens)), atol=1e-6)
