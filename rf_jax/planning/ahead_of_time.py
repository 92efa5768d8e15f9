"""Compiles the programs of a run for devices that need not exist here, and computes their cost."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.data import typical_row
from rf_jax.models import encoders, flops, vision_encoder
from rf_jax.models.attention import masks
from rf_jax.models.attention.pallas import Pallas
from rf_jax.models.attention.triton import Triton
from rf_jax.planning import gpus, hlo_cost, hlo_memory, roofline
from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.sharding import format_bytes
from rf_jax.training import jitted
from rf_jax.training.checks import flatten

MEMORY_LIMIT = 0.9  # share of a chip's memory that a program may use


@dataclass(frozen=True)
class Cost:
    """Cost of one program on one chip: bytes, FLOPs and seconds."""

    name: str
    compile_seconds: float
    compile_processor_seconds: float  # of all threads: wall-clock time on one idle core
    peak: float  # device memory; decides whether the program fits
    arguments: float
    outputs: float  # those not aliased to arguments
    temporaries: float  # as if they shared no memory
    host: float  # host memory
    parts: tuple[hlo_memory.Part, ...]  # estimated parts of the peak
    flops: float
    model_flops: float | None
    memory_traffic: float
    collectives: tuple[roofline.Collective, ...]
    times: roofline.Times | None
    mfu: float | None
    loops_of_unknown_length: int
    made: int = 0  # by one run of the program, on all chips
    unit: str = ''  # of what is made

    @property
    def intensity(self) -> float:
        """FLOPs per byte of memory traffic."""
        return self.flops / max(self.memory_traffic, 1.0)


class Compiled(NamedTuple):
    program: Any
    seconds: float
    processor_seconds: float


def compile_program(name: str, program: Callable, arguments: Sequence, device) -> Compiled:
    """Compiles for devices such as `device`. Raises UserError if the program does not fit into
    memory.
    """
    wall, processor = time.perf_counter(), time.process_time()
    try:
        if device.platform == 'gpu':
            executable = gpus.compiled(program, arguments, device)
        else:
            lowered = program.trace(*arguments).lower(lowering_platforms=(device.platform,))
            executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = out_of_memory_error(name, str(error))
        if not refusal:
            raise
        raise refusal from None
    return Compiled(executable, time.perf_counter() - wall, time.process_time() - processor)


UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def out_of_memory_error(name: str, message: str) -> UserError | None:
    """Turns a compiler's out-of-memory message for program `name` into an error; else None."""
    number = r'([\d.]+)([KMGT]?)'
    hbm = rf'\({number}\) exceeds available HBM \({number}\)|Used {number} of {number} hbm'
    if match := re.search(hbm, message):
        values = [part for part in match.groups() if part is not None]
        needs, has = (float(n) * UNITS[unit] for n, unit in zip(values[::2], values[1::2]))
        return DoesNotFit(name, needs, has)
    if match := re.search(rf'Used {number} of {number} vmem', message):
        kernel = re.search(r'op_name="([^"]*)"', message)
        return UserError(
            f'{name}: the kernel {kernel[1] if kernel else "of a product"} needs '
            f'{match[1]}{match[2]} of the {match[3]}{match[4]} bytes of VMEM; lower '
            'model.attention.block_q or model.attention.block_k'
        )
    return None


class DoesNotFit(UserError):
    """The compiler cannot fit a program; `needs` and `has`: bytes of a chip's memory."""

    def __init__(self, name: str, needs: float, has: float):
        super().__init__(
            f'{name} needs {format_bytes(needs)} of memory, but a chip has {format_bytes(has)}'
        )
        self.name, self.needs, self.has = name, needs, has


def cost(
    name: str,
    program: Callable,
    arguments: Sequence,
    mesh_: Mesh,
    config: ConfigDict,
    *,
    model_flops: float | None = None,
    kernel_flops: Callable[[str, float], float | None] = lambda label, reported: None,
    **made,
) -> Cost:
    """Compiles `program` for the mesh's devices.

    `model_flops`: of all chips, for the MFU. `kernel_flops(label, reported)`: FLOPs of one run of a
    kernel where they are known better than what the kernel itself reports, else None. `made`: what
    a run of the program makes, see Cost.
    """
    device = mesh_.devices.flat[0]
    ready = compile_program(name, program, arguments, device)
    memory, text = ready.program.memory_analysis(), ready.program.as_text()
    totals = hlo_cost.totals(text)
    total_flops = totals.flops
    for label, (runs, reported) in totals.kernels.items():
        each = reported / max(runs, 1)
        known = kernel_flops(label, each)
        total_flops += runs * (each if known is None else known)
    chip, peak = hardware.chip(device), hardware.peak_flops(device)
    rows = tuple(roofline.collectives(totals.collectives, mesh_, chip))
    times = chip and roofline.times(total_flops, totals.bytes, rows, chip, peak)
    share = model_flops and model_flops / mesh_.size
    return Cost(
        name=name,
        compile_seconds=ready.seconds,
        compile_processor_seconds=ready.processor_seconds,
        peak=hlo_memory.peak(memory, device.platform),
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        host=hlo_memory.host(memory),
        parts=hlo_memory.parts(hlo_memory.at_peak(text), flatten(config.to_dict())),
        flops=total_flops,
        model_flops=share,
        memory_traffic=totals.bytes,
        collectives=rows,
        times=times,
        mfu=share / peak / times.step if times and share else None,
        loops_of_unknown_length=totals.unknown,
        **made,
    )


# FLOPs of the attention kernels per pair, head and channel: two products forward; backward three
# for the queries and four for the keys, which include recomputing the logits.
KERNELS = {'attention': 4.0, 'attention_dq': 6.0, 'attention_dkv': 8.0}


def kernel_flops(config: ConfigDict, row: Mapping[str, np.ndarray], chips: int, platform: str):
    """The `kernel_flops` argument of `cost` for a train step: even routing, typical rows.

    Attention kernels visit a list of tiles that is known only at run time; within a tile, masked
    pairs are computed too. With gradient accumulation one run of a kernel has a part of the rows.
    """
    model, rows = config.model, config.data.batch_size / chips / config.optimizer.grad_accum_steps
    moe = model.backbone.moe
    width = {'backbone': model.backbone.heads * model.backbone.head_dim}
    width['vision'] = width['pixels'] = model.encoder.width
    integers = {'backbone': {name: row[name][None] for name in masks.FIELDS}}
    for tower, kind in (('vision', 'vision'), ('pixels', 'pixel')):
        images, extra = len(row[f'{kind}_counts']), encoders.own_tokens(config)
        owner = np.concatenate([np.repeat(np.arange(images), extra), row[f'{kind}_image']])
        integers[tower] = vision_encoder.integers_of(owner[None])
    each = {
        tower: rows * width[tower] * tile_pairs(model.attention, platform, tokens)
        for tower, tokens in integers.items()
    }

    def of(label: str, reported: float) -> float | None:
        if 'gmm' in label:  # dispatch buffers are larger than even routing needs
            return reported / (moe.capacity_factor if config.mesh.expert > 1 else 1.0)
        name, _, where = label.partition(' ')
        if name not in KERNELS:
            return None
        in_encoder = 'autoencoder' not in where and 'encoder' in where
        tower = 'pixels' if 'features' in where else 'vision' if in_encoder else 'backbone'
        return None if 'autoencoder' in where else KERNELS[name] * each[tower]

    return of


def tile_pairs(config, platform: str, tokens, keys=None) -> float:
    """Pairs in the tiles that the attention kernel of a platform visits in a row; `config`:
    model.attention, `keys`: by default the tokens themselves.
    """
    keys = tokens if keys is None else keys
    queries, length = (each['segment'].shape[1] for each in (tokens, keys))
    if not queries:
        return 0.0
    kernel = Triton() if platform == 'gpu' else Pallas(config.block_q, config.block_k)
    sizes = kernel.sizes(1, queries, length)
    return float(masks.tiles(tokens, keys, *sizes).sum()) * math.prod(sizes)


def train_step(config: ConfigDict, vocabulary: int, mesh_: Mesh) -> Cost:
    """Cost of the train step at the batch size and capacities of the config."""
    built = jitted.build(config, vocabulary, mesh_, mesh_.devices.flat[0].platform)
    row = typical_row.row(config)
    return cost(
        'train step',
        built.train_step,
        (built.abstract, built.batch()),
        mesh_,
        config,
        model_flops=flops.train_step(config, vocabulary, flops.visible_pairs(config, row)),
        kernel_flops=kernel_flops(config, row, mesh_.size, mesh_.devices.flat[0].platform),
    )


def initialise(config: ConfigDict, vocabulary: int, mesh_: Mesh) -> Cost:
    """Cost of initialising the state."""
    built = jitted.build(config, vocabulary, mesh_, mesh_.devices.flat[0].platform)
    return cost('initialise', built.initialise, (), mesh_, config)
