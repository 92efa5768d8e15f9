"""What the devices can do at most, by their makers' data sheets."""

from dataclasses import dataclass

import jax

# bfloat16 products without sparsity, FLOP/s of one JAX device; longer names first.
_PEAKS = {
    'TPU v6 lite': 918e12,
    'TPU v5 lite': 197e12,
    'TPU v5': 459e12,
    'TPU v4': 275e12,
    'TPU v3': 61.5e12,
    'NVIDIA B200': 2250e12,
    'NVIDIA H200': 989e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H100': 989e12,
    'NVIDIA A100': 312e12,
}


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device in bfloat16; None for kinds that are not listed, as CPUs."""
    kinds = (kind for kind in _PEAKS if device.device_kind.startswith(kind))
    return next((_PEAKS[kind] for kind in kinds), None)


@dataclass(frozen=True)
class Chip:
    """One TPU chip: bytes of memory that its compiler offers a program, and bytes/s of memory, of
    both directions of the links along one axis of the torus, and to another slice.
    """

    memory: float
    bandwidth: float
    axis: float
    slice: float
    wraps: int  # an axis of so many chips, or a multiple of it, closes to a ring


# Memory: libtpu 0.0.42. The rest: Google Cloud's pages of each TPU; the network between slices is
# counted as 25 GB/s a host, of four chips for v5p, of eight for v5e and v6e.
CHIPS = {
    'TPU v6 lite': Chip(31.25 * 2**30, 1640e9, 180e9, 3.1e9, 16),
    'TPU v5 lite': Chip(15.75 * 2**30, 819e9, 90e9, 3.1e9, 16),
    'TPU v5': Chip(95.74 * 2**30, 2765e9, 180e9, 6.2e9, 4),
}


def chip(device: jax.Device) -> Chip | None:
    """Data of a TPU chip, None for other devices."""
    kinds = (kind for kind in CHIPS if device.device_kind.startswith(kind))
    return next((CHIPS[kind] for kind in kinds), None)
