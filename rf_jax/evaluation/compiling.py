"""Compiles the programs of a run for devices that need not be there, and tells what they cost."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from rf_jax.data import typical
from rf_jax.evaluation import roofline
from rf_jax.learning import programs
from rf_jax.models import flops
from rf_jax.runtime import hardware, program_cost
from rf_jax.runtime.errors import UserError

PROMPT = 64  # text tokens of the sampling program
ROOM = 0.9  # share of a chip's memory that a program may take


@dataclass(frozen=True)
class Cost:
    """Of one program on one chip: bytes, FLOPs and seconds."""

    name: str
    compile_seconds: float
    arguments: float
    outputs: float
    temporaries: float
    peak: float
    flops: float
    model_flops: float | None
    memory_traffic: float
    collectives: tuple[roofline.Collective, ...]
    times: roofline.Times | None
    mfu: float | None
    loops_of_unknown_length: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte of main memory."""
        return self.flops / max(self.memory_traffic, 1.0)


def compiled(name: str, program: Callable, arguments: Sequence, platform: str):
    """(compiled program, seconds). Raises UserError if the compiler says that it does not fit."""
    began = time.perf_counter()
    try:
        lowered = program.trace(*arguments).lower(lowering_platforms=(platform,))
        return lowered.compile(), time.perf_counter() - began
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r'Used ([\d.]+\w) of ([\d.]+\w) (\w+)', str(error))
        if not used:
            raise
        raise DoesNotFit(name, f'{used[1]} of {used[2]}') from None


class DoesNotFit(UserError):
    """The compiler found no way to place a program in the memory of a chip."""

    def __init__(self, name: str, used: str):
        super().__init__(f'{name} needs {used} bytes of the memory of a chip')
        self.name, self.used = name, used


def cost(
    name: str,
    program: Callable,
    arguments: Sequence,
    mesh_: Mesh,
    *,
    model_flops: float | None = None,
    kernel_flops: Callable[[str, float], float | None] = lambda label, says: None,
) -> Cost:
    """Compiles `program` for the mesh's devices.

    `model_flops`: of all chips, for the MFU. `kernel_flops(label, says)`: FLOPs of one run of a
    kernel where it is known better than what the kernel says of itself.
    """
    device = mesh_.devices.flat[0]
    ready, seconds = compiled(name, program, arguments, device.platform)
    memory = ready.memory_analysis()
    totals = program_cost.totals(ready.as_text())
    done = totals.flops
    for label, (runs, says) in totals.kernels.items():
        each = says / max(runs, 1)
        known = kernel_flops(label, each)
        done += runs * (each if known is None else known)
    chip, peak = hardware.chip(device), hardware.peak_flops(device)
    rows = tuple(roofline.collectives(totals.collectives, mesh_, chip))
    times = chip and roofline.times(done, totals.bytes, rows, chip, peak)
    share = model_flops and model_flops / mesh_.size
    return Cost(
        name=name,
        compile_seconds=seconds,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        flops=done,
        model_flops=share,
        memory_traffic=totals.bytes,
        collectives=rows,
        times=times,
        mfu=share / peak / times.step if times and share else None,
        loops_of_unknown_length=totals.unknown,
    )


def pairs(config, row: Mapping[str, np.ndarray]) -> flops.Pairs:
    """Visible pairs of a typical row."""
    extra = 1 + config.model.encoder.registers
    return flops.Pairs(
        typical.visible_pairs(row),
        typical.picture_pairs(row['vision_counts'], extra),
        typical.picture_pairs(row['pixel_counts'], extra),
    )


def kernel_flops(config, row: Mapping[str, np.ndarray], rows: float):
    """What the kernels of a train step compute at even routing and in a typical row."""
    del row, rows

    def of(label: str, says: float) -> float | None:
        if 'gmm' in label and config.mesh.expert > 1:
            return says / config.model.backbone.routed.slack  # the buffer's room is not computed
        return None

    return of


def train_step(config, vocabulary: int, mesh_: Mesh) -> Cost:
    """The real train step at the config's rows and capacities."""
    platform = mesh_.devices.flat[0].platform
    built = programs.build(config, vocabulary, mesh_, platform)
    row = typical.row(config)
    return cost(
        'train step',
        built.train_step,
        (built.abstract, built.batch()),
        mesh_,
        model_flops=flops.train_step(config, vocabulary, pairs(config, row)),
        kernel_flops=kernel_flops(config, row, config.data.rows / mesh_.size),
    )


def initialise(config, vocabulary: int, mesh_: Mesh) -> Cost:
    """The birth of the state."""
    built = programs.build(config, vocabulary, mesh_, mesh_.devices.flat[0].platform)
    return cost('initialise', built.initialise, (), mesh_)
