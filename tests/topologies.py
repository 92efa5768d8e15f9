"""Devices of every known TPU topology as described by libtpu, for machines without libtpu.

`python tests/topologies.py` asks libtpu and writes tests/topologies.json: for each topology and
number of slices the columns of its devices, in libtpu's order. Coordinates are one base-36 digit
each; the other columns are run-length encoded, [value, count]. It then prints the table of
docs/scaling.md.
"""

import dataclasses
import importlib.util
import itertools
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from configs import base, paper
from rf_jax.planning import topology
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks

TABLE = Path(__file__).with_suffix('.json')
NAMES = [f'{kind}:{size}' for kind, sizes in topology.KNOWN.items() for size in sizes]
SLICES = (1, 2)
HERE = importlib.util.find_spec('libtpu') is not None


def spread():
    """A config whose rows lie on eight devices each, more than a host has."""
    config = paper.get_config('joint')
    config.mesh.update(data=1, fsdp=-1, tensor=4, context=2)
    return config


CONFIGS = {'configs/base.py': base.get_config, 'tensor 4 x context 2': spread} | {
    f'configs/paper.py:{stage}/{size}': partial(paper.get_config, f'{stage}/{size}')
    for stage, size in itertools.product(('joint', 'alignment', 'continued'), paper.MODELS)
}


def config_for(name: str, count: int):
    """A config of CONFIGS for `count` devices; `data.batch_size` its own or, if that does not
    divide, one row for each place of the mesh.
    """
    config = CONFIGS[name]()
    places = count // (config.mesh.tensor * config.mesh.context)
    if places and config.data.batch_size % places:
        config.data.batch_size = places
    return config


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A device as libtpu described it; all that JAX asks of one to place it in a mesh."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int
    process_index: int
    slice_index: int
    device_kind: str
    platform: str = 'tpu'


def columns(devices: Sequence) -> dict:
    """What the table holds of the devices of a topology."""
    found = {'coords': ''.join(digit(x) for device in devices for x in device.coords)}
    for name in ('core_on_chip', 'process_index', 'slice_index', 'device_kind'):
        values = (getattr(device, name, 0) for device in devices)  # one slice has no slice_index
        found[name] = [[value, len(list(same))] for value, same in itertools.groupby(values)]
    return found


def digit(number: int) -> str:
    """A base-36 digit; raises IndexError beyond 35."""
    return '0123456789abcdefghijklmnopqrstuvwxyz'[number]


def recorded(name: str, slices: int) -> list[Recorded]:
    """Devices of the table."""
    held = dict(json.loads(TABLE.read_text(encoding='utf-8'))[f'{slices} x {name}'])
    digits = [int(x, 36) for x in held.pop('coords')]
    each = {
        column: [value for value, count in runs for _ in range(count)]
        for column, runs in held.items()
    }
    places = zip(digits[0::3], digits[1::3], digits[2::3])
    rows = zip(places, *each.values())
    return [
        Recorded(id=i, coords=coords, **dict(zip(each, row)))
        for i, (coords, *row) in enumerate(rows)
    ]


def devices(name: str, slices: int) -> Sequence:
    """libtpu's own devices where it is installed, else those of the table."""
    return topology.devices(name, slices) if HERE else recorded(name, slices)


def rows(config, devices: Sequence) -> str:
    """'rows of a process / rows of a batch', or why the run does not start."""
    try:
        _, shares = checks.start(config, devices)
    except UserError as error:
        wanted = re.search(r'multiple of \d+ devices|between \d slices', str(error))
        return f'no: {wanted[0]}'
    return (
        f'{" or ".join(sorted({str(len(x)) for x in shares.values()}))} / {config.data.batch_size}'
    )


def table() -> str:
    """Markdown: which topologies start with which meshes, and the rows of a process."""
    names = ['configs/base.py', 'configs/paper.py:joint/30B-A3B', 'tensor 4 x context 2']
    cases = list(itertools.product(SLICES, names))
    lines = ['| topology | ' + ' | '.join(f'{n} x, {name}' for n, name in cases) + ' |']
    lines.append('| --- ' * (len(cases) + 1) + '|')
    for topology_ in NAMES:
        found = {n: devices(topology_, n) for n in SLICES}
        cells = [rows(config_for(name, len(found[n])), found[n]) for n, name in cases]
        lines.append(f'| {topology_} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    lines = []
    for name, slices in itertools.product(NAMES, SLICES):
        held = json.dumps(columns(topology.devices(name, slices)), separators=(',', ':'))
        lines.append(f'{json.dumps(f"{slices} x {name}")}:{held}')
    TABLE.write_text('{\n' + ',\n'.join(lines) + '\n}\n', encoding='utf-8')
    print(table())


if __name__ == '__main__':
    main()
