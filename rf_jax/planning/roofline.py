"""Roofline: the least time a program can take, with compute, memory and network at their peaks.

Assumptions, printed with every table: matrix products run at the chip's bfloat16 peak; a collective
uses the torus axes that its devices span, in both directions, at half the bandwidth where the axis
is not a ring; between slices, the chips of a host share its network. A GPU sends to the others of
its host by NVLink or PCIe, to other hosts at its share of the network. `step` is the maximum of the
four times, as if all overlapped; `serial` is their sum, as if nothing did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from rf_jax.runtime.hardware import Chip

_PEAKS = (
    "Assumptions: matrix products run at the chip's bfloat16 peak; {}; rows are typical of the "
    "config's tasks and sizes; routing is even. The step time is the maximum of compute, memory "
    'and network, as if all overlapped. '
)
ASSUMED = {  # printed below a report, by platform
    'tpu': _PEAKS.format(
        'each collective uses the torus axes that its devices span, in both directions, at half '
        'the bandwidth where an axis is not a ring; the chips of a host share its network'
    )
    + 'Memory is the peak reported by libtpu, which decides whether a program fits; its parts are '
    'estimated from the schedule.',
    'gpu': _PEAKS.format(
        'a GPU sends at the peak of its links within a host, and of its share of the network to '
        'others'
    )
    + 'Memory is what XLA allocates for arguments, outputs and temporaries, compared with the '
    'share of a GPU that JAX takes (XLA_CLIENT_MEM_FRACTION, 0.75 by default); CUDA and its '
    'libraries need some of the rest. XLA tunes kernels only on a GPU.',
    'cpu': 'Memory is an upper bound: arguments, outputs and temporaries as if they shared none.',
}


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program on one chip."""

    compute: float
    memory: float
    links: float
    network: float
    names: tuple[str, str] = ('ICI', 'DCN')  # of links and network

    @property
    def parts(self) -> dict[str, float]:
        names = ('compute', 'memory', *self.names)
        return dict(zip(names, (self.compute, self.memory, self.links, self.network)))

    @property
    def step(self) -> float:
        return max(self.parts.values())

    @property
    def serial(self) -> float:
        return sum(self.parts.values())

    @property
    def bound(self) -> str:
        return max(self.parts, key=self.parts.get)


@dataclass(frozen=True)
class Collective:
    """Bytes that a chip sends per run of the program, the mesh axes, and the seconds it takes."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    links: float
    network: float


def collectives(sent_bytes: Mapping, mesh: Mesh, chip: Chip | None) -> list[Collective]:
    """One entry per kind and mesh axes of `hlo.Totals.collectives`, largest first."""
    rows: dict = {}
    for (kind, groups), sent in sent_bytes.items():
        axes = _axes(groups, mesh)
        seconds = (0.0, 0.0) if chip is None else _seconds(kind, groups[0], sent, mesh, chip)
        old = rows.get((kind, axes), (0.0, 0.0, 0.0))
        rows[kind, axes] = tuple(a + b for a, b in zip(old, (sent, *seconds)))
    table = [Collective(kind, axes, *row) for (kind, axes), row in rows.items()]
    return sorted(table, key=lambda row: -row.bytes)


def _axes(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(np.array(groups[0]), mesh.devices.shape))
    return tuple(name for name, place in zip(mesh.axis_names, places) if (place != place[0]).any())


def _seconds(kind: str, group, sent: float, mesh: Mesh, chip: Chip) -> tuple[float, float]:
    """(over links, over the network)"""
    devices = [mesh.devices.flat[i] for i in group]
    places = [_place(device, chip) for device in devices]
    here = [device for device, place in zip(devices, places) if place == min(places)]
    if chip.wraps:
        links = _torus(kind, here, sent, mesh, chip)
    else:
        links = sent / chip.links if len(here) > 1 else 0.0
    network = sent / len(here) / chip.network if len(set(places)) > 1 else 0.0
    return links, network


def _place(device, chip: Chip) -> int:
    """The slice or host of a device: the network joins different ones."""
    return getattr(device, 'slice_index', 0) if chip.wraps else device.process_index


def _torus(kind: str, here, sent: float, mesh: Mesh, chip: Chip) -> float:
    all_coords = [device.coords for device in mesh.devices.flat]
    bandwidth, longest = 0.0, 1
    for i in range(len(here[0].coords)):
        span = len({device.coords[i] for device in here})
        full = len({coords[i] for coords in all_coords})
        if span > 1:
            ring = span == full and full % chip.wraps == 0
            bandwidth += chip.links * (1.0 if ring else 0.5)
            longest = max(longest, span)
    # In an all-to-all, bytes travel a quarter of the ring on average.
    hops = max(1.0, longest / 4) if kind.endswith('all-to-all') else 1.0
    return sent * hops / bandwidth if bandwidth else 0.0


def times(flops: float, bytes_: float, rows: Sequence[Collective], chip: Chip, peak: float):
    """`Times` of a program with these FLOPs and bytes of memory traffic per chip."""
    links, network = (sum(getattr(row, name) for row in rows) for name in ('links', 'network'))
    return Times(flops / peak, bytes_ / chip.bandwidth, links, network, chip.names)
