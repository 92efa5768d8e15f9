"""Peak FLOP/s, memory and bandwidth of accelerators, from the vendors' data sheets."""

from dataclasses import dataclass

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
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for kinds not listed, such as CPUs."""
    kinds = (kind for kind in _PEAKS if device.device_kind.startswith(kind))
    return next((_PEAKS[kind] for kind in kinds), None)


@dataclass(frozen=True)
class Chip:
    """Limits of one TPU chip."""

    memory: float  # bytes that the compiler lets a program use
    bandwidth: float  # bytes/s of the memory
    axis: float  # bytes/s of the links along one torus axis, both directions together
    slice: float  # bytes/s to another slice
    wraps: int  # a torus axis closes to a ring if its size is a multiple of this


# Memory: libtpu 0.0.42. The rest: Google Cloud's documentation of each TPU. The network between
# slices is taken as 25 GB/s per host of four chips for v5p, of eight for v5e and v6e.
CHIPS = {
    'TPU v6 lite': Chip(31.25 * 2**30, 1640e9, 180e9, 3.1e9, 16),
    'TPU v5 lite': Chip(15.75 * 2**30, 819e9, 90e9, 3.1e9, 16),
    'TPU v5': Chip(95.74 * 2**30, 2765e9, 180e9, 6.2e9, 4),
}


def chip(device: jax.Device) -> Chip | None:
    """Limits of a TPU chip; None for other devices."""
    kinds = (kind for kind in CHIPS if device.device_kind.startswith(kind))
    return next((CHIPS[kind] for kind in kinds), None)
