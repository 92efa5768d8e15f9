"""What the devices can do at most, by their makers' data sheets."""

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
