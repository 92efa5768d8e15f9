"""The frequencies of the backbone's rotary positions have the bits of torch and transformers."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rf_jax.models import layers

# head_dim 128, theta 1e6 (Qwen3): what torch 2.13.0 computes. A float32 power in numpy or XLA, or
# theta^-x instead of 1 / theta^x, is an ulp off in several of these.
RECORDED = {
    1: 0.8058422207832336,
    2: 0.6493816375732422,
    3: 0.5232991576194763,
    7: 0.22067339718341827,
    18: 0.02053525112569332,
    25: 0.004531583748757839,
}
# torch without vector instructions; with them, its own power is an ulp off in one of 150.
TORCH = """
import json, sys, torch
for head_dim, theta in json.loads(sys.argv[1]):
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    print(json.dumps((1.0 / (theta**exponents)).tolist()))
"""


def ulps(a, b):
    return np.abs(a.view(np.int32) - b.view(np.int32))


def test_frequencies_are_those_recorded_of_torch():
    found = layers.rotary_frequencies(128, 1e6)
    assert found.dtype == np.float32 and found.shape == (64,)
    assert {j: float(found[j]) for j in RECORDED} == RECORDED


def test_frequencies_are_bit_equal_with_torch():
    pytest.importorskip('torch')
    cases = [(d, t) for d in (8, 64, 80, 128, 256) for t in (100.0, 1e4, 1e6, 5e6, 1e7)]
    done = subprocess.run(
        [sys.executable, '-c', TORCH, json.dumps(cases)],
        env=os.environ | {'ATEN_CPU_CAPABILITY': 'default'},
        check=True,
        capture_output=True,
        text=True,
    )
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        wanted = np.float32(json.loads(line))
        np.testing.assert_array_equal(layers.rotary_frequencies(*case), wanted, str(case))


@pytest.mark.slow
def test_angles_of_long_rows_are_those_of_transformers():
    torch = pytest.importorskip('torch')
    qwen3 = pytest.importorskip('transformers.models.qwen3.modeling_qwen3')
    config = qwen3.Qwen3Config(head_dim=128)
    config.rope_parameters = {'rope_type': 'default', 'rope_theta': 1e6}
    rotary = qwen3.Qwen3RotaryEmbedding(config)
    frequencies = rotary.inv_freq.numpy()
    assert ulps(layers.rotary_frequencies(128, 1e6), frequencies).max() <= 1

    order = np.arange(0, 32_768, 7)
    wanted = rotary(torch.zeros(1), torch.tensor(order[None]))[0].numpy()[0, :, :64]
    position = jnp.repeat(jnp.float32(order)[:, None], 3, -1)
    angles = jax.jit(layers.rotary_angles, static_argnums=(1, 2, 3))
    found = np.cos(angles(position, 128, (32, 16, 16), 1e6))
    np.testing.assert_allclose(found, wanted, atol=2e-6)
