"""Lanes: parts of the data and of every batch, planned independently: a host plans only its own.

Lane l of L has examples l/L to (l + 1)/L of every pool, and the same part of the rows of a batch.
The lanes alone decide what a batch holds, so any number of processes makes the same batches, as
long as each has whole lanes.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.data import layout
from rf_jax.data.mixture import Example, Mixture
from rf_jax.data.packing import plan
from rf_jax.data.packing.plan import Plan
from rf_jax.data.pools import Pools
from rf_jax.runtime.errors import UserError, require
from rf_jax.runtime.rng import fold

# Examples of a window of a lane, of sets with an index: what is read from a bucket and then held.
WINDOW = 2**14


def count(data) -> int:
    """Lanes of a batch: `data.lanes`, or one for each row if that is -1.

    Raises UserError if they do not divide the rows.
    """
    if data.lanes == -1:
        return data.batch_size
    require(
        data.batch_size % data.lanes == 0,
        f'data.lanes={data.lanes} must divide data.batch_size={data.batch_size}',
    )
    return data.lanes


def check_rows(data, rows: np.ndarray) -> None:
    """Raises UserError if the rows of a process are not whole lanes of a batch.

    The rows of a host's devices need not be next to each other: the order of devices in a mesh
    follows the torus. Lanes of one row always fit.
    """
    height = data.batch_size // count(data)
    _, held = np.unique(np.asarray(rows) // height, return_counts=True)
    if (held < height).any() and count(data) > 1:
        raise UserError(
            f'data.lanes={data.lanes}: a lane has {height} rows next to each other, but this '
            f'process has only some rows of a lane ({_ranges(rows)} of {data.batch_size}): '
            f'data.lanes=-1, one lane for each row, fits any mesh'
        )


class Lanes:
    """The plans of the lanes that have `rows`, the rows of a process in every global batch.

    Raises UserError if these are not whole lanes, or a lane would have no example of a pool.
    """

    def __init__(self, config, pools: Pools, rows: np.ndarray, counts: Counter):
        self._data, self._seed, self._pools, self._counts = config.data, config.seed, pools, counts
        self._count = count(config.data)
        self._height = config.data.batch_size // self._count  # rows of a lane
        check_rows(config.data, rows)
        own = np.unique(rows // self._height)
        self._plans = {int(lane): self._plan(int(lane)) for lane in own}

    @property
    def first(self) -> Plan:
        return next(iter(self._plans.values()))

    def rows(self, step: int, which: np.ndarray) -> list[list[Example]]:
        """The examples of rows `which` of global batch `step`, all of them of these lanes."""
        found = {}
        for lane, each in self._plans.items():
            own = which[which // self._height == lane]
            found |= zip(own.tolist(), each.rows(step, (own % self._height).tolist()))
        return [found[row] for row in which.tolist()]

    def _plan(self, lane: int) -> Plan:
        first, *later = self._pools.phases()
        return Plan(
            self._mixture(lane, first[1]),
            lambda name, index, epoch: self._pools[name].sizes(index, epoch),
            [self._data.capacity[name] for name in layout.SIZES],
            self._height,
            self._counts,
            [(step, self._mixture(lane, weights)) for step, weights in later],
            self._window(),
        )

    def _mixture(self, lane: int, weights: dict[str, float]) -> Mixture:
        count = self._count
        ends = {name: self._ends(name, lane) for name in weights}
        for name, (start, stop) in ends.items():
            require(
                weights[name] == 0 or stop > start,
                f'data.lanes={count}: lane {lane} has none of the {len(self._pools[name])} '
                f'examples of {self._pools[name].task}; use fewer lanes',
            )
        return Mixture(
            {name: stop - start for name, (start, stop) in ends.items()},
            weights,
            self._seed if count == 1 else fold(self._seed, 'lane', lane),
            {name: start for name, (start, _) in ends.items()},
            {name: self._together(name) for name in weights},
        )

    def _ends(self, name: str, lane: int) -> tuple[int, int]:
        """First and last + 1 example of the lane; what is read together stays in one lane."""
        size, together = len(self._pools[name]), self._together(name)
        blocks = -(-size // together)
        ends = [blocks * at // self._count * together for at in (lane, lane + 1)]
        return min(ends[0], size), min(ends[1], size)

    def _together(self, name: str) -> int:
        """Examples of a pool that are read together, if every lane has that many."""
        size, together = len(self._pools[name]), self._pools[name].together
        return together if size >= together * self._count else 1

    def _window(self) -> int:
        if any(self._pools[name].together > 1 for name in self._pools):
            return WINDOW
        return max(plan.WINDOW // self._count, min(plan.LEAST, plan.WINDOW))


def _ranges(rows: Sequence[int]) -> str:
    shown = ', '.join(map(str, rows[:4]))
    return f'{shown}, ...' if len(rows) > 4 else shown
