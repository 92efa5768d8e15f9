"""NVIDIA GPUs to compile for without having one, as XLA's CUDA compiler needs to know them.

XLA tunes kernels by running them, which needs the GPU. Without it, COMPILER_OPTIONS keep XLA from
writing kernels for matrix products itself, as its untuned choices do not exist for all shapes:
cuBLAS takes any. On a GPU, XLA chooses between both.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh

from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError

COMPILER_OPTIONS = {'xla_gpu_enable_triton_gemm': False}


@dataclass(frozen=True)
class Gpu:
    """`kind`: JAX's device_kind. `threads`, `shared_memory` and `lanes` (for float32) are those of
    one of its `cores`; memory and bandwidth: hardware.GPUS.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    threads: int
    shared_memory: int
    l2: int
    ghz: float

    def target(self) -> str:
        """XLA's description of the GPU, a GpuTargetConfigProto as text."""
        limits = next(hardware.GPUS[kind] for kind in hardware.GPUS if self.kind.startswith(kind))
        major, minor = self.capability
        extension = 'feature_extension: ACCELERATED_FEATURES' if major >= 9 else ''
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.kind}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
              core_count: {self.cores}
              fpus_per_core: {self.lanes}
              threads_per_core_limit: {self.threads}
              shared_memory_per_core: {self.shared_memory}
              shared_memory_per_block_optin: {self.shared_memory - 1024}
              l2_cache_size: {self.l2}
              clock_rate_ghz: {self.ghz}
              device_memory_size: {int(limits.memory)}
              memory_bandwidth: {int(limits.bandwidth)}
              threads_per_warp: 32
              threads_per_block_limit: 1024
              shared_memory_per_block: 49152
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              block_dim_limit_x: 2147483647
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              thread_dim_limit_x: 1024
              thread_dim_limit_y: 1024
              thread_dim_limit_z: 64
              runtime_version: "12.8.0"
            }}"""


# From NVIDIA's data sheets and whitepapers.
KNOWN = {
    'a100-40gb': Gpu('NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 2048, 167936, 40 << 20, 1.41),
    'a100-80gb': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 2048, 167936, 40 << 20, 1.41),
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 2048, 233472, 50 << 20, 1.98),
    'h200': Gpu('NVIDIA H200', (9, 0), 132, 128, 2048, 233472, 50 << 20, 1.98),
    'b200': Gpu('NVIDIA B200', (10, 0), 148, 128, 2048, 233472, 126 << 20, 1.965),
    'l40s': Gpu('NVIDIA L40S', (8, 9), 142, 128, 1536, 102400, 96 << 20, 2.52),
    'rtx4090': Gpu('NVIDIA GeForce RTX 4090', (8, 9), 128, 128, 1536, 102400, 72 << 20, 2.52),
}  # fmt: skip


def compiled(program: Callable, arguments: Sequence, device: jax.Device) -> jax.stages.Compiled:
    """Compiles a jitted function for GPUs such as `device`, which comes from `devices`."""
    # Pallas of JAX 0.12 asks which GPU it writes a kernel for. It knows no L40S: that has the
    # architecture of the L40.
    kind = device.device_kind.replace('L40S', 'L40')
    gpu = AbstractDevice(device_kind=kind, num_cores=None, platform='gpu')
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        lowered = program.trace(*arguments).lower(lowering_platforms=('cuda',))
    return lowered.compile(COMPILER_OPTIONS)


def devices(name: str, gpu: Gpu, size: str) -> Sequence[jax.Device]:
    """`size`: '8', or '2x8' for two hosts of eight. Raises UserError, which names `name`."""
    if not re.fullmatch(r'([1-9]\d*x)?[1-9]\d*', size):
        kind = name.partition(':')[0]
        raise UserError(
            f'--topology={name}: give the number of GPUs, as in {kind}:8, or hosts x GPUs, as in '
            f'{kind}:2x8'
        )
    hosts, _, each = size.rpartition('x')
    try:
        return topologies.get_topology_desc(
            platform='cuda', topology=f'1x{hosts or 1}x{each}', target_config=gpu.target()
        ).devices
    except NotImplementedError:  # what JAX raises for a platform without a plugin
        raise UserError(
            f"--topology={name} needs JAX's plugin for CUDA (pip install -e '.[gpu]'), but no GPU"
        ) from None
