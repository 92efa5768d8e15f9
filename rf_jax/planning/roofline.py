"""Roofline: the least time a program can take, with compute, memory and network at their peaks.

Assumptions, printed with every table: matrix products run at the chip's bfloat16 peak; a collective
uses the torus axes that its devices span, in both directions, at half the bandwidth where the axis
is not a ring; between slices, the chips of a host share its network. `step` is the maximum of the
four times, as if all overlapped; `serial` is their sum, as if nothing did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from rf_jax.runtime.hardware import Chip


@dataclass(frozen=True)
class Times:
    """Seconds of one run of a program on one chip."""

    compute: float
    memory: float
    ici: float
    dcn: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.ici, self.dcn)

    @property
    def serial(self) -> float:
        return self.compute + self.memory + self.ici + self.dcn

    @property
    def bound(self) -> str:
        parts = {'compute': self.compute, 'memory': self.memory, 'ICI': self.ici, 'DCN': self.dcn}
        return max(parts, key=parts.get)


@dataclass(frozen=True)
class Collective:
    """Bytes that a chip sends per run of the program, the mesh axes, and the seconds it takes."""

    kind: str
    axes: tuple[str, ...]
    bytes: float
    ici: float
    dcn: float


def collectives(sent_bytes: Mapping, mesh: Mesh, chip: Chip | None) -> list[Collective]:
    """One entry per kind and mesh axes of `hlo.Totals.collectives`, largest first."""
    rows: dict = {}
    for (kind, groups), sent in sent_bytes.items():
        axes = _axes(groups, mesh)
        ici, dcn = (0.0, 0.0) if chip is None else _seconds(kind, groups[0], sent, mesh, chip)
        old = rows.get((kind, axes), (0.0, 0.0, 0.0))
        rows[kind, axes] = tuple(a + b for a, b in zip(old, (sent, ici, dcn)))
    table = [Collective(kind, axes, *row) for (kind, axes), row in rows.items()]
    return sorted(table, key=lambda row: -row.bytes)


def _axes(groups: Sequence[Sequence[int]], mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    places = np.array(np.unravel_index(np.array(groups[0]), mesh.devices.shape))
    return tuple(name for name, place in zip(mesh.axis_names, places) if (place != place[0]).any())


def _seconds(kind: str, group, sent: float, mesh: Mesh, chip: Chip) -> tuple[float, float]:
    devices = [mesh.devices.flat[i] for i in group]
    all_coords = [device.coords for device in mesh.devices.flat]
    slices = {getattr(device, 'slice_index', 0) for device in devices}
    here = [d for d in devices if getattr(d, 'slice_index', 0) == min(slices)]
    bandwidth, longest = 0.0, 1
    for i in range(len(devices[0].coords)):
        span = len({device.coords[i] for device in here})
        full = len({coords[i] for coords in all_coords})
        if span > 1:
            ring = span == full and full % chip.wraps == 0
            bandwidth += chip.axis * (1.0 if ring else 0.5)
            longest = max(longest, span)
    # In an all-to-all, bytes travel a quarter of the ring on average.
    hops = max(1.0, longest / 4) if kind.endswith('all-to-all') else 1.0
    ici = sent * hops / bandwidth if bandwidth else 0.0
    dcn = sent / max(len(here), 1) / chip.slice if len(slices) > 1 else 0.0
    return ici, dcn


def times(flops: float, bytes_: float, rows: Sequence[Collective], chip: Chip, peak: float):
    """`Times` of a program with these FLOPs and bytes of memory traffic per chip."""
    ici, dcn = (sum(getattr(row, name) for row in rows) for name in ('ici', 'dcn'))
    return Times(flops / peak, bytes_ / chip.bandwidth, ici, dcn)
