"""Peak FLOP/s, memory and bandwidth of accelerators, from the vendors' data sheets."""

import os
import re
from dataclasses import dataclass, replace

import jax

# Dense bfloat16 FLOP/s of one JAX device; longer names first.
_PEAKS = {
    'TPU v6 lite': 918e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v4': 275e12,
    'TPU v3': 61.5e12,
    'NVIDIA B200': 2250e12,
    'NVIDIA H200 NVL': 835e12,
    'NVIDIA H200': 989e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H100 NVL': 835e12,
    'NVIDIA H100': 989e12,
    'NVIDIA A100': 312e12,
    'NVIDIA L40S': 362e12,
    'NVIDIA GeForce RTX 4090': 165e12,
}


# In the names of slower GPUs that begin as those above; NVIDIA H200 MIG 1g.18gb is a part of one.
_SLOWER = re.compile(r' (MIG|Laptop|D)\b')


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for kinds not listed, such as CPUs."""
    if _SLOWER.search(device.device_kind):
        return None
    kinds = (kind for kind in _PEAKS if device.device_kind.startswith(kind))
    return next((_PEAKS[kind] for kind in kinds), None)


@dataclass(frozen=True)
class Chip:
    """Limits of one TPU chip or GPU."""

    memory: float  # bytes that a program may use
    bandwidth: float  # bytes/s of the memory
    links: float  # bytes/s that it sends within its slice (along a torus axis, both ways) or host
    network: float  # bytes/s to another slice or host
    wraps: int = 0  # a torus axis closes to a ring if its size is a multiple of this; 0: no torus
    names: tuple[str, str] = ('ICI', 'DCN')  # of links and network


# Memory: libtpu 0.0.42. The rest: Google Cloud's documentation of each TPU. The network between
# slices is taken as 25 GB/s per host of four chips for v5p, of eight for v5e and v6e.
CHIPS = {
    'TPU v6 lite': Chip(31.25 * 2**30, 1640e9, 180e9, 3.1e9, 16),
    'TPU v5 lite': Chip(15.75 * 2**30, 819e9, 90e9, 3.1e9, 16),
    'TPU v5': Chip(95.74 * 2**30, 2765e9, 180e9, 6.2e9, 4),
}


def _gpu(memory: float, bandwidth: float, links: float, network: float) -> Chip:
    fast = 'NVLink' if links > 100e9 else 'PCIe'
    return Chip(memory, bandwidth, links, network, names=(fast, 'network'))


# Memory: as CUDA reports it. The rest: NVIDIA's data sheets; one direction of NVLink or PCIe. The
# network between hosts is taken as 200 Gbit/s a GPU for A100, 400 for Hopper and Blackwell, and 100
# for all eight GPUs of a host with PCIe.
GPUS = {
    'NVIDIA B200': _gpu(191.5e9, 7672e9, 900e9, 50e9),
    'NVIDIA H200': _gpu(151.4e9, 4800e9, 450e9, 50e9),
    'NVIDIA H100': _gpu(84.9e9, 3352e9, 450e9, 50e9),
    'NVIDIA A100-SXM4-80GB': _gpu(85.1e9, 2039e9, 300e9, 25e9),
    'NVIDIA A100-SXM4-40GB': _gpu(42.3e9, 1555e9, 300e9, 25e9),
    'NVIDIA L40S': _gpu(47.7e9, 864e9, 32e9, 1.6e9),
    'NVIDIA GeForce RTX 4090': _gpu(25.4e9, 1008e9, 32e9, 1.6e9),
}


def _jax_share() -> float:
    """The share of a GPU's memory that JAX takes for arrays; the second name is its old one."""
    names = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
    return float(next(filter(None, map(os.environ.get, names)), 0.75))


def chip(device: jax.Device) -> Chip | None:
    """Limits of a TPU chip or GPU, whose memory is what JAX takes of it; None if not listed."""
    for kinds, share in ((CHIPS, 1.0), (GPUS, _jax_share())):
        for kind in kinds:
            if device.device_kind.startswith(kind):
                return replace(kinds[kind], memory=kinds[kind].memory * share)
    return None
