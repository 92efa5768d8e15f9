"""Sharded rows are joined and split without loss; each device has a part of every stream."""

import jax.numpy as jnp
import numpy as np

from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.runtime.mesh import make_mesh

SIZES = (8, 4, 12)


def streams():
    rng = np.random.default_rng(0)
    return [jnp.array(rng.normal(size=(2, n, 3)), jnp.float32) for n in SIZES]


def test_join_and_split_are_inverse():
    mesh = make_mesh({'data': 1, 'fsdp': 2, 'expert': 1, 'tensor': 1, 'context': 4})
    sharding, parts = TokenSharding(mesh), streams()
    whole = sharding.join(parts)
    for found, right in zip(sharding.split(whole, SIZES), parts):
        np.testing.assert_array_equal(found, right)
    quarter = whole[:, : sum(SIZES) // 4]  # of the first of four devices
    np.testing.assert_array_equal(quarter[:, :2], parts[0][:, :2])
    np.testing.assert_array_equal(quarter[:, 2:3], parts[1][:, :1])
    np.testing.assert_array_equal(quarter[:, 3:], parts[2][:, :3])
    plain = UNSHARDED.join(parts)
    np.testing.assert_array_equal(sharding.interleave(plain, SIZES), whole)
    np.testing.assert_array_equal(sharding.deinterleave(whole, SIZES), plain)
