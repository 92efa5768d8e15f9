"""The report of a compile check, as text and JSON, and the sweep over meshes and remat policies."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.generation import placement
from rf_jax.planning import ahead_of_time, inference
from rf_jax.planning.ahead_of_time import MEMORY_LIMIT, Cost
from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError, choose
from rf_jax.runtime.sharding import format_bytes
from rf_jax.training import checks, jitted

SHOWN = 8  # collectives listed per program, at most
SMALL = 0.02  # parts below this share of the peak are not listed
# Changed fields; the cost, or the GB needed or 'no: reason' as text; whether it fits.
Tried = tuple[dict, Cost | str, bool]


def fits(cost: Cost, mesh: Mesh) -> bool:
    """Whether a program stays within MEMORY_LIMIT; True if the chip's memory is unknown."""
    chip = hardware.chip(mesh.devices.flat[0])
    return chip is None or cost.peak <= MEMORY_LIMIT * chip.memory


def table(cost: Cost, mesh: Mesh, config: ConfigDict) -> str:
    """The figures of one program, one per line."""
    chip = hardware.chip(mesh.devices.flat[0])
    of = f' of {chip.memory / 1e9:.0f} GB ({cost.peak / chip.memory:.0%})' if chip else ''
    times_model = f', {cost.flops / cost.model_flops:.2f} x the model' if cost.model_flops else ''
    lines = [
        f'{cost.name}: compiled in {cost.compile_seconds:.0f} s '
        f'({cost.compile_processor_seconds:.0f} s of CPU time)',
        f'  memory per chip    {format_bytes(cost.peak):>12}{of}',
        *memory_lines(cost, config, mesh),
        f'  FLOPs per chip     {cost.flops / 1e9:12,.1f} G{times_model}',
        f'  memory traffic     {format_bytes(cost.memory_traffic):>12}, '
        f'{cost.intensity:.0f} FLOPs per byte',
    ]
    links, network = chip.names if chip else ('links', 'network')
    for row in cost.collectives[:SHOWN]:
        lines.append(
            f'  {row.kind:18s} {format_bytes(row.bytes):>12} '
            f'over {" x ".join(row.axes) or "nothing"}: '
            f'{row.links * 1e3:.1f} ms {links}, {row.network * 1e3:.1f} ms {network}'
        )
    if cost.times:
        t = cost.times
        lines.append(
            f'  roofline           {t.step * 1e3:9.1f} ms, bound by {t.bound} ('
            + ', '.join(f'{name} {seconds * 1e3:.1f}' for name, seconds in t.parts.items())
            + f'; {t.serial * 1e3:.1f} without overlap)'
        )
    if cost.made and cost.times:
        seconds = cost.times.step
        lines.append(
            f'  throughput         {cost.made} {cost.unit} in {seconds:.3g} s: '
            f'{cost.made / seconds:.3g} per second'
        )
    if cost.mfu:
        serial = cost.mfu * cost.times.step / cost.times.serial
        lines.append(
            f'  predicted MFU      {cost.mfu:9.1%} with full overlap, {serial:.1%} with none'
        )
    if config.offload and mesh.devices.flat[0].platform == 'gpu' and cost.name not in INFERENCE:
        lines.append(
            f'  offload={config.offload!r} has no effect here: for GPUs that are not there, JAX '
            'counts host memory as memory of the GPU'
        )
    if cost.loops_of_unknown_length:
        lines.append(
            f'  {cost.loops_of_unknown_length} loops with a trip count known only at run time '
            'count as not run, such as further rounds of expert dispatch, which even routing '
            'does not need'
        )
    return '\n'.join(lines)


def memory_lines(cost: Cost, config: ConfigDict, mesh: Mesh) -> Iterator[str]:
    """The parts of the peak, one per line, with the config field that reduces each in training."""
    fields = checks.flatten(config.to_dict()) | {
        f'mesh.{axis}': n for axis, n in mesh.shape.items()
    }
    for part in cost.parts:
        if part.bytes < SMALL * cost.peak:
            continue
        now = f'={fields[part.field]}' if part.field in fields else ''
        field = f'  [{part.field}{now}]' if part.field and cost.name not in INFERENCE else ''
        yield f'    {format_bytes(part.bytes):>26}  {part.what}, largest {part.shape}{field}'
    if cost.host:
        yield f'  host memory        {format_bytes(cost.host):>12} per chip'


HEADER = (
    '| what | chips | mesh | remat | program | peak of a chip | FLOPs / model | step | MFU |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n'
)


def markdown(what: str, chips: str, config: ConfigDict, cost: Cost, mesh: Mesh) -> str:
    """A row of the table with this HEADER."""
    chip = hardware.chip(mesh.devices.flat[0])
    sizes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1)
    share = f' ({cost.peak / chip.memory:.0%})' if chip else ''
    cells = (
        *(what, chips, sizes or '1 device', config.model.backbone.remat, cost.name),
        f'{cost.peak / 1e9:.1f} GB{share}',
        f'{cost.flops / cost.model_flops:.2f}' if cost.model_flops else '',
        f'{cost.times.step * 1e3:,.0f} ms, {cost.times.bound}' if cost.times else '',
        f'{cost.mfu:.0%}' if cost.mfu else '',
    )
    return f'| {" | ".join(cells)} |\n'


def add_line(table: Path, line: str) -> None:
    """Appends a row to the table in the file, or starts a table at the end of the file."""
    text = table.read_text(encoding='utf-8') if table.exists() else ''
    before, header, after = text.partition(HEADER)
    if not header and before:
        before = before.rstrip('\n') + '\n\n'
    rows = re.match(r'(\|.*\n)*', after)[0]
    table.write_text(before + HEADER + rows + line + after[len(rows) :], encoding='utf-8')


def as_json(cost: Cost) -> dict:
    """A cost as plain values."""
    return dataclasses.asdict(cost) | {'intensity': cost.intensity}


@dataclasses.dataclass(frozen=True)
class Checked:
    """The result for one program: compiled, or refused by the compiler for lack of memory."""

    text: str
    fits: bool
    values: dict
    cost: Cost | None = None


PROGRAMS = {
    'initialise': ahead_of_time.initialise,
    'train_step': ahead_of_time.train_step,
    'sample': inference.sample,
    'answer': inference.answer,
}
INFERENCE = ('sample', 'answer')  # compiled for another mesh than that of training


def meshes(
    config: ConfigDict, devices, only: Sequence[str], asked: Mapping[str, int] | None
) -> Iterator[tuple[Mesh, list[str]]]:
    """The mesh of training and that of inference, each with those programs of `only` that run on
    it; prints what they are. `asked`: sizes of that of inference. Raises UserError for a config
    that training would refuse.
    """
    inference_ = [name for name in only if name in INFERENCE]
    if training := [name for name in only if name not in inference_]:
        mesh_, rows = checks.start(config, devices)
        counts = sorted({len(own) for own in rows.values()})
        print(f'{len(rows)} processes, rows per process: {" or ".join(map(str, counts))}')
        yield mesh_, training
    if inference_:
        checks.check(config)
        sizes = asked or placement.natural_sizes(config, len(devices))
        mesh_ = placement.inference_mesh(sizes, devices)
        shown = ', '.join(f'{axis} {size}' for axis, size in mesh_.shape.items() if size > 1)
        print(f'inference: {shown or "one device"}, bfloat16', flush=True)
        yield mesh_, inference_


def compile_programs(
    config: ConfigDict, vocabulary: int, mesh: Mesh, names: Sequence[str]
) -> Iterator[Checked]:
    """Compiles the named programs one by one. Raises UserError for an unknown name."""
    for name in names:
        compile_ = choose('--only', name, PROGRAMS)
        try:
            cost = compile_(config, vocabulary, mesh)
        except ahead_of_time.DoesNotFit as error:
            more = 'try more devices along --mesh=tensor:N,expert:N'
            if name not in INFERENCE:
                more = advice(config, vocabulary, mesh)
            text = f'{error}\n  {more}'
            yield Checked(text, False, {'name': name, 'fits': False, 'needs': error.needs})
            continue
        fit = fits(cost, mesh)
        text = table(cost, mesh, config)
        if not fit:
            text += f'\n  needs more than {MEMORY_LIMIT:.0%} of a chip; the fields above reduce it'
        yield Checked(text, fit, {'fits': fit} | as_json(cost), cost)


def advice(config: ConfigDict, vocabulary: int, mesh: Mesh) -> str:
    """Which field to change for a program that the compiler refuses: its buffers are not known."""
    state = jitted.build(config, vocabulary, mesh, mesh.devices.flat[0].platform).abstract
    parts = {
        'parameters': jitted.nbytes_per_device(state.params),
        'EMA': jitted.nbytes_per_device(state.ema),
        'optimizer state': jitted.nbytes_per_device(state.opt_state),
    }
    chip = hardware.chip(mesh.devices.flat[0])
    if chip and sum(parts.values()) > chip.memory / 2 and not config.offload:
        field = 'more devices along mesh.fsdp, or --config.offload=\'("ema", "opt_state")\''
    elif config.model.backbone.remat != 'full':
        field = '--config.model.backbone.remat=full'
    else:
        field = 'fewer tokens per chip: mesh.context=2, or smaller data.capacity'
    shown = ', '.join(f'{name} {format_bytes(count)}' for name, count in parts.items())
    return f'{shown}; try {field}'


def variants(config: ConfigDict, devices: int) -> Iterator[dict]:
    """Meshes and remat policies to try, as {config field: value}; those whose batch rows divide
    evenly over the devices.
    """
    routed = config.model.backbone.ffn == 'moe'
    experts = (1, 4, 8) if routed else (1,)
    for expert, tensor, context in itertools.product(experts, (1, 2), (1, 2)):
        used = expert * tensor * context
        rows_on = devices // (tensor * context)
        if devices % used or config.data.batch_size % rows_on or tensor * context > 2:
            continue
        for remat in ('full', 'attention', 'projections'):
            yield {
                'mesh.expert': expert, 'mesh.tensor': tensor, 'mesh.context': context,
                'model.backbone.remat': remat,
            }  # fmt: skip


def sweep_table(tried: Sequence[Tried]) -> str:
    """The table of a sweep: variants that fit first, by predicted step time."""

    def key(entry):
        _, cost, fit = entry
        seconds = math.inf if isinstance(cost, str) or not cost.times else cost.times.step
        return (not fit, seconds)

    lines = [f'{"fits":>5} {"GB":>7} {"ms":>8} {"MFU":>6} {"FLOPs/model":>11}  fields']
    for fields, cost, fit in sorted(tried, key=key):
        shown = ' '.join(f'{name.split(".")[-1]}={value}' for name, value in fields.items()
                         if name.startswith('model') or value not in (1, -1))  # fmt: skip
        if isinstance(cost, str):
            needs, reason = ('', f' {cost}') if cost.startswith('no: ') else (cost, '')
            lines.append(f'{"no":>5} {needs:>7} {"":>8} {"":>6} {"":>11}  {shown}{reason}')
            continue
        step = f'{cost.times.step * 1e3:.0f}' if cost.times else '-'
        mfu = f'{cost.mfu:.0%}' if cost.mfu else '-'
        ratio = f'{cost.flops / cost.model_flops:.2f}' if cost.model_flops else '-'
        lines.append(
            f'{"yes" if fit else "no":>5} {cost.peak / 1e9:7.1f} {step:>8} {mfu:>6} {ratio:>11}  '
            + shown
        )
    return '\n'.join(lines)


def sweep(config: ConfigDict, vocabulary: int, devices: Sequence) -> Iterator[Tried]:
    """Compiles the train step of each of `variants`; yields (fields, cost, fits).

    If the compiler refuses a variant, its cost is the GB needed as text; if it cannot be built,
    'no: reason'. Raises UserError if there is no variant.
    """
    to_try = list(variants(config, len(devices)))
    if not to_try:
        raise UserError(
            f'--sweep: no mesh for {len(devices)} devices and '
            f'data.batch_size={config.data.batch_size}: use a multiple of the number of devices, '
            'or of half of it'
        )
    for fields in to_try:
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(fields)
        try:
            mesh, _ = checks.start(changed, devices)
            cost = ahead_of_time.train_step(changed, vocabulary, mesh)
            yield fields, cost, fits(cost, mesh)
        except ahead_of_time.DoesNotFit as error:
            yield fields, f'{error.needs / 1e9:.1f}', False
        except UserError as error:
            yield fields, f'no: {error}', False


def tried_as_json(fields: dict, cost: Cost | str, fit: bool) -> dict:
    """A variant of a sweep as plain values."""
    if isinstance(cost, str):
        figures = {'reason' if cost.startswith('no: ') else 'needs': cost.removeprefix('no: ')}
    else:
        figures = as_json(cost)
    return {'fields': fields, 'fits': fit} | figures
