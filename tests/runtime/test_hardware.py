"""Peak FLOP/s by JAX device kind."""

from types import SimpleNamespace

import jax
import pytest

from rf_jax.runtime.hardware import peak_flops


@pytest.mark.parametrize(
    'kind, teraflops',
    [
        ('TPU v4', 275),
        ('TPU v5 lite', 197),
        ('TPU v5', 459),
        ('TPU v5p', 459),
        ('TPU v6 lite', 918),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H100 NVL', 835),
        ('NVIDIA H200 NVL', 835),
        ('NVIDIA H200', 989),
        ('NVIDIA A100-SXM4-40GB', 312),
    ],
)
def test_known_kinds(kind, teraflops):
    assert peak_flops(SimpleNamespace(device_kind=kind)) == teraflops * 1e12


def test_a_cpu_has_no_listed_peak():
    assert peak_flops(jax.devices()[0]) is None


@pytest.mark.parametrize(
    'kind',
    [
        'NVIDIA H100 80GB HBM3 MIG 1g.10gb',
        'NVIDIA GeForce RTX 4090 Laptop GPU',
        'NVIDIA GeForce RTX 4090 D',
    ],
)
def test_a_part_of_a_gpu_and_its_slower_namesakes_have_no_listed_peak(kind):
    assert peak_flops(SimpleNamespace(device_kind=kind)) is None
