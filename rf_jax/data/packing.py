"""The plan: which draws stand in which row of which batch, as pure integers.

An epoch is one pass over the smallest task (relative to its weight). Task t draws sample
`permutation(seed, t, pass)[i]`, so every sample of a task is seen exactly once per pass. Draws are
packed first-fit into rows of fixed capacity, rows are shuffled and cut into batches. The plan of an
epoch depends on (sizes, mixture, seed, epoch) alone, so any host can start at any step.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging

from rf_jax.data.keys import generator

OPEN_ROWS = 512  # rows that first-fit keeps open; more fill better and cost more time


@dataclass(frozen=True)
class Draw:
    """One sample of one task in one pass: everything random about it folds from these."""

    task: str
    index: int
    turn: int


@dataclass(frozen=True)
class Mixture:
    """`counts`: samples that can serve each task; `weights`: draws per kind, any scale."""

    counts: Mapping[str, int]
    weights: Mapping[str, float]
    seed: int
    least: int = 1  # draws of an epoch; a tiny task is passed several times in one

    def per_epoch(self) -> dict[str, int]:
        """Draws of each task in an epoch."""
        active = {task: w for task, w in self.weights.items() if w > 0}
        scale = min(self.counts[task] / weight for task, weight in active.items())
        scale = max(scale, self.least / sum(active.values()))
        return {task: max(1, round(scale * weight)) for task, weight in active.items()}

    def epoch(self, epoch: int) -> list[Draw]:
        """All draws of an epoch, in random order."""
        draws = []
        for task, number in self.per_epoch().items():
            count = self.counts[task]
            for turn, start, stop in _passes(epoch * number, number, count):
                order = generator(self.seed, 'pass', task, turn).permutation(count)
                draws += [Draw(task, int(i), turn) for i in order[start:stop]]
        generator(self.seed, 'mix', epoch).shuffle(draws)
        return draws


def _passes(first: int, number: int, count: int):
    """(pass, start, stop) pieces that cover draws first .. first + number of an endless series."""
    while number > 0:
        turn, start = divmod(first, count)
        stop = min(count, start + number)
        yield turn, start, stop
        first, number = first + stop - start, number - (stop - start)


def pack(sizes: np.ndarray, capacity: np.ndarray, open_rows: int = OPEN_ROWS) -> list[list[int]]:
    """First-fit of samples into rows. sizes int[S, 6], capacity int[6]; gives sample numbers.

    A row is closed when it is the fullest of `open_rows` open ones and a sample fits nowhere.
    Raises ValueError when a sample exceeds an empty row.
    """
    too_big = (sizes > capacity).any(1)
    if too_big.any():
        raise ValueError(f'sample {int(np.argmax(too_big))} exceeds the capacity of a row')
    rows: list[list[int]] = []
    left = np.zeros((0, sizes.shape[1]), np.int64)
    numbers: list[int] = []  # of the open rows
    fullness = np.maximum(capacity, 1)
    for sample, need in enumerate(sizes):
        fits = (left >= need).all(1)
        if fits.any():
            at = int(np.argmax(fits))
        else:
            if len(numbers) == open_rows:
                worst = int(np.argmin((left / fullness).sum(1)))
                left = np.delete(left, worst, 0)
                del numbers[worst]
            numbers.append(len(rows))
            rows.append([])
            left = np.concatenate([left, capacity[None]])
            at = len(numbers) - 1
        rows[numbers[at]].append(sample)
        left[at] -= need
    return rows


class Plan:
    """Steps to rows of draws. `size_of(draw)` gives int[6] without decoding a picture."""

    def __init__(
        self, mixture: Mixture, size_of: Callable[[Draw], np.ndarray], capacity, batch_rows: int
    ):
        self.mixture = mixture
        self.size_of = size_of
        self.capacity = np.asarray(capacity)
        self.batch_rows = batch_rows
        self._lock = threading.Lock()  # reader threads share the plan
        first = self._packed(0)
        # Every epoch has the same number of steps, so a step names its epoch by division. Rows to
        # spare take the epochs whose captions happen to be longer than the first one's.
        spare = max(batch_rows, len(first) // 100)
        self.steps_per_epoch = -(-len(first) // batch_rows) + -(-spare // batch_rows)
        self._rows = {0: self._filled_up(first)}

    def _packed(self, epoch: int) -> list[list[Draw]]:
        draws = self.mixture.epoch(epoch)
        sizes = np.stack([self.size_of(draw) for draw in draws])
        rows = pack(sizes, self.capacity)
        generator(self.mixture.seed, 'rows', epoch).shuffle(rows)
        return [[draws[i] for i in row] for row in rows]

    def _filled_up(self, rows: list[list[Draw]]) -> list[list[Draw]]:
        """Exactly steps_per_epoch * batch_rows rows; the first rows come again to fill up."""
        need = self.steps_per_epoch * self.batch_rows
        if len(rows) > need:
            logging.warning('%d rows of an epoch of %d are left out', len(rows) - need, need)
        return [rows[i % len(rows)] for i in range(need)]

    def _epoch_rows(self, epoch: int) -> list[list[Draw]]:
        with self._lock:
            if epoch not in self._rows:
                near = {e: rows for e, rows in self._rows.items() if abs(e - epoch) <= 1}
                self._rows = near | {epoch: self._filled_up(self._packed(epoch))}
            return self._rows[epoch]

    def rows(self, step: int) -> Sequence[Sequence[Draw]]:
        """The draws of every row of global batch `step`."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return self._epoch_rows(epoch)[at * self.batch_rows : (at + 1) * self.batch_rows]
