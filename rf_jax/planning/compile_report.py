"""What a compile check prints, for people and as JSON; and the sweep over meshes and remat."""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax.sharding import Mesh

from rf_jax.planning import ahead_of_time
from rf_jax.planning.ahead_of_time import ROOM, Cost
from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError, choose
from rf_jax.runtime.sharding import format_bytes
from rf_jax.training import checks, jitted

SHOWN = 8  # collectives of a table
SMALL = 0.02  # share of the peak below which a part of it is not listed
# Fields changed; cost, bytes needed as text or 'no: reason'; whether it fits.
Tried = tuple[dict, Cost | str, bool]


ASSUMED = """Assumed: bfloat16 products at the chip's peak; each collective over the torus axes that
its devices span, both directions at once, at half where an axis is no ring; a host's network shared
by its chips; a typical row of this config's tasks and sizes; even routing. The step is the greatest
of compute, memory, ICI and DCN, as if all overlapped. Memory is the peak that libtpu gives, which
decides whether a program fits; what it consists of is estimated from the schedule. For CPU devices
it is an upper bound: arguments, outputs and temporaries as if none shared memory."""


def fits(cost: Cost, mesh: Mesh) -> bool:
    """Whether a program takes no more than ROOM of a chip's memory; True where that is unknown."""
    chip = hardware.chip(mesh.devices.flat[0])
    return chip is None or cost.peak <= ROOM * chip.memory


def table(cost: Cost, mesh: Mesh, config) -> str:
    """One program, a line a figure."""
    chip = hardware.chip(mesh.devices.flat[0])
    of = f' of {chip.memory / 1e9:.0f} GB ({cost.peak / chip.memory:.0%})' if chip else ''
    times_model = f', {cost.flops / cost.model_flops:.2f} x the model' if cost.model_flops else ''
    lines = [
        f'{cost.name}: compiled in {cost.compile_seconds:.0f} s '
        f'({cost.compile_processor_seconds:.0f} s of processors)',
        f'  memory of a chip   {format_bytes(cost.peak):>12}{of}',
        *held(cost, config, mesh),
        f'  FLOPs of a chip    {cost.flops / 1e9:12,.1f} G{times_model}',
        f'  memory traffic     {format_bytes(cost.memory_traffic):>12}, '
        f'{cost.intensity:.0f} FLOPs a byte',
    ]
    for row in cost.collectives[:SHOWN]:
        lines.append(
            f'  {row.kind:18s} {format_bytes(row.bytes):>12} over {" x ".join(row.axes) or "nothing"}: '
            f'{row.ici * 1e3:.1f} ms ICI, {row.dcn * 1e3:.1f} ms DCN'
        )
    if cost.times:
        t = cost.times
        lines.append(
            f'  roofline           {t.step * 1e3:9.1f} ms, bound by {t.bound} (compute '
            f'{t.compute * 1e3:.1f}, memory {t.memory * 1e3:.1f}, ICI {t.ici * 1e3:.1f}, DCN '
            f'{t.dcn * 1e3:.1f}; {t.in_a_row * 1e3:.1f} in a row)'
        )
    if cost.mfu:
        in_a_row = cost.mfu * cost.times.step / cost.times.in_a_row
        lines.append(
            f'  predicted MFU      {cost.mfu:9.1%} if all overlaps, {in_a_row:.1%} if nothing'
        )
    if cost.loops_of_unknown_length:
        lines.append(
            f'  {cost.loops_of_unknown_length} loops whose length is known only at run time count '
            'as not run: further rounds of an exchange, of which even routing needs none'
        )
    return '\n'.join(lines)


def held(cost: Cost, config, mesh: Mesh) -> Iterator[str]:
    """What the peak consists of, a line a part, and the field that makes it smaller."""
    fields = checks.flatten(config.to_dict()) | {
        f'mesh.{axis}': n for axis, n in mesh.shape.items()
    }
    for part in cost.parts:
        if part.bytes < SMALL * cost.peak:
            continue
        now = f'={fields[part.field]}' if part.field in fields else ''
        field = f'  [{part.field}{now}]' if part.field else ''
        yield f'    {format_bytes(part.bytes):>26}  {part.what}, the largest {part.shape}{field}'
    if cost.host:
        yield f'  memory of the host {format_bytes(cost.host):>12} a chip'


HEADER = (
    '| what | chips | mesh | remat | program | peak of a chip | FLOPs / model | step | MFU |\n'
    '| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n'
)


def markdown(what: str, chips: str, config, cost: Cost, mesh: Mesh) -> str:
    """A line of the table that HEADER begins."""
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
    """Adds a line of `markdown` to the file's table, or begins one at the end of the file."""
    text = table.read_text(encoding='utf-8') if table.exists() else ''
    before, header, after = text.partition(HEADER)
    if not header and before:
        before = before.rstrip('\n') + '\n\n'
    rows = re.match(r'(\|.*\n)*', after)[0]
    table.write_text(before + HEADER + rows + line + after[len(rows) :], encoding='utf-8')


def as_json(cost: Cost) -> dict:
    """All of a cost, as plain values."""
    return dataclasses.asdict(cost) | {'intensity': cost.intensity}


@dataclasses.dataclass(frozen=True)
class Checked:
    """A program that was compiled, or that found no room."""

    text: str
    fits: bool
    values: dict
    cost: Cost | None = None


PROGRAMS = {
    'initialise': ahead_of_time.initialise,
    'train_step': ahead_of_time.train_step,
    'sample': ahead_of_time.sample,
}


def each(config, vocabulary: int, mesh: Mesh, names: Sequence[str]) -> Iterator[Checked]:
    """Compiles the named programs one after another. Raises UserError for an unknown name."""
    for name in names:
        compile_ = choose('--only', name, PROGRAMS)
        try:
            cost = compile_(config, vocabulary, mesh)
        except ahead_of_time.DoesNotFit as error:
            text = f'{error}\n  {advice(config, vocabulary, mesh)}'
            yield Checked(text, False, {'name': name, 'fits': False, 'needs': error.needs})
            continue
        fit = fits(cost, mesh)
        text = table(cost, mesh, config)
        if not fit:
            text += (
                f'\n  does not fit into {ROOM:.0%} of a chip; the fields above make parts smaller'
            )
        yield Checked(text, fit, {'fits': fit} | as_json(cost), cost)


def advice(config, vocabulary: int, mesh: Mesh) -> str:
    """Which field would help a program that the compiler refuses: of that there are no buffers."""
    state = jitted.build(config, vocabulary, mesh, mesh.devices.flat[0].platform).abstract
    parts = {
        'parameters': jitted.nbytes_per_device(state.params),
        'their average': jitted.nbytes_per_device(state.ema),
        'optimizer state': jitted.nbytes_per_device(state.opt_state),
    }
    chip = hardware.chip(mesh.devices.flat[0])
    if chip and sum(parts.values()) > chip.memory / 2 and not config.offload:
        field = 'more devices along mesh.fsdp, or --config.offload=\'("ema", "opt_state")\''
    elif config.model.backbone.remat != 'full':
        field = '--config.model.backbone.remat=full'
    else:
        field = 'fewer tokens a chip: mesh.context=2, or smaller data.capacity'
    shown = ', '.join(f'{name} {format_bytes(count)}' for name, count in parts.items())
    return f'{shown}; try {field}'


def variants(config, devices: int) -> Iterator[dict]:
    """Meshes and remat policies worth a try, on as many devices as data.batch_size allows or more.

    Each a {field: value} of the config.
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


def ranked(found: Sequence[Tried]) -> str:
    """The sweep's table: what fits first, then by predicted step time."""

    def key(entry):
        _, cost, fit = entry
        late = math.inf if isinstance(cost, str) or not cost.times else cost.times.step
        return (not fit, late)

    lines = [f'{"fits":>5} {"GB":>7} {"ms":>8} {"MFU":>6} {"FLOPs/model":>11}  fields']
    for fields, cost, fit in sorted(found, key=key):
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


def sweep(config, vocabulary: int, devices: Sequence) -> Iterator[Tried]:
    """(fields, cost or what the compiler says it needs, fits) of each of `variants`.

    A variant that cannot be built has 'no: reason' for its cost. Raises UserError if there is none.
    """
    to_try = list(variants(config, len(devices)))
    if not to_try:
        raise UserError(
            f'--sweep finds no mesh for {len(devices)} devices and '
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
    """A variant of a sweep, as plain values."""
    if isinstance(cost, str):
        figures = {'reason' if cost.startswith('no: ') else 'needs': cost.removeprefix('no: ')}
    else:
        figures = as_json(cost)
    return {'fields': fields, 'fits': fit} | figures
