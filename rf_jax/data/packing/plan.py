"""The plan: which draws stand in which row of which batch, as pure integers.

The endless order of draws (`mixture.py`) is cut into windows, each of as many as fill the rows of a
whole number of steps: a step names its window by division, and a window is planned without
those before it. A draw that finds no room in its window stands in the next one; nothing comes
twice. The plan follows from (sizes, mixture, capacities, rows of a batch) alone: it knows no hosts,
so that a run may go on with any number of them, and never holds more than a few windows.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from absl import logging

from rf_jax.data.mixture import Draw, Draws, Mixture, joined
from rf_jax.data.packing import bins
from rf_jax.runtime.rng import generator

WINDOW = 2**16  # most draws from which a window's size is found: what a plan holds in memory
LEAST = 2**11  # the same, at least: few samples still meet in ever new rows
_PART = 2**9  # draws that are sized at a time: an ending program waits no longer
_DEVIATIONS = 2  # windows differ: rows to spare take a demand so many deviations above the mean

SizesOf = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Dealt:
    """A window's own draws: `row` int[S] of each, -1 if left over; `room` int[rows, d]."""

    draws: Draws
    sizes: np.ndarray
    row: np.ndarray
    room: np.ndarray

    def left_over(self) -> tuple[Draws, np.ndarray]:
        left = self.row < 0
        return self.draws.take(left), self.sizes[left]


@dataclass(frozen=True)
class Window:
    """Draws sorted by row; row r holds `starts[r] .. starts[r + 1]`."""

    draws: Draws
    starts: np.ndarray
    room: np.ndarray  # int64[d], left in all rows together
    left_over: tuple[Draws, np.ndarray]  # own draws without room, which stand in the next window
    left_out: int  # draws of the window before that found no room here either

    def row(self, number: int) -> list[Draw]:
        return self.draws.take(slice(self.starts[number], self.starts[number + 1])).list()


class Plan:
    """Steps to rows of draws.

    `sizes_of(task, index, turn)` gives int[S, d] for int64[S] sample numbers and passes, without
    decoding a picture; `capacity` int[d]. `counts['draws_without_room']` grows by what is left out.
    Raises ValueError when a sample exceeds an empty row.
    """

    def __init__(
        self,
        mixture: Mixture,
        sizes_of: SizesOf,
        capacity,
        batch_rows: int,
        counts: Counter | None = None,
    ):
        self.mixture = mixture
        self.sizes_of = sizes_of
        self.capacity = np.asarray(capacity, np.int64)
        self.batch_rows = batch_rows
        self.counts = Counter() if counts is None else counts
        self._windows: dict[int, Future] = {}
        self._lock = threading.Lock()  # reader threads share the plan
        self.steps_per_window, self.shares = self._window_size()

    @property
    def draws_per_window(self) -> int:
        return sum(self.shares.values())

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which the smallest task, relative to its weight, is passed once."""
        return math.ceil(self.mixture.epoch() / self.draws_per_window * self.steps_per_window)

    def rows(self, step: int, which: Iterable[int] | None = None) -> list[list[Draw]]:
        """The draws of rows `which` of global batch `step`; default: of all."""
        number, at = divmod(step, self.steps_per_window)
        window = self.window(number)
        self._prepare(number + 1)
        which = range(self.batch_rows) if which is None else which
        return [window.row(at * self.batch_rows + i) for i in which]

    def window(self, number: int) -> Window:
        """Planned once, whichever thread asks first; the others wait for it."""
        future, mine = self._claim(number)
        if mine:
            self._fulfil(number, future)
        return future.result()

    def _prepare(self, number: int) -> None:
        """Plans a window in the background, so that its first batch does not wait."""
        future, mine = self._claim(number)
        if mine:
            # No daemon: one that Python ends inside the tokenizer's C++ takes the process with it.
            threading.Thread(target=self._fulfil, args=(number, future)).start()

    def _claim(self, number: int) -> tuple[Future, bool]:
        """(the window to come, whether the caller must make it)."""
        with self._lock:
            mine = number not in self._windows
            if mine:
                near = {n: f for n, f in self._windows.items() if abs(n - number) <= 2}
                self._windows = near | {number: Future()}
            return self._windows[number], mine

    def _fulfil(self, number: int, future: Future) -> None:
        try:
            future.set_result(self._planned(number))
        except BaseException as error:  # whoever waits for the window is told
            future.set_exception(error)

    def _planned(self, number: int) -> Window:
        dealt = self._dealt(number)
        draws, row, room, left_out = dealt.draws, dealt.row, dealt.room, 0
        came, sizes = self._left_over(number - 1) if number else ((), None)
        if len(came):
            at = bins.fit(sizes, room, self.capacity)
            draws, row = joined([draws, came]), np.concatenate([row, at])
            left_out = int((at < 0).sum())
        if left_out:
            self.counts['draws_without_room'] += left_out
        if left_out > self.draws_per_window // 100:
            logging.warning('no room for %d of %d draws', left_out, self.draws_per_window)
        # Dealing begins with the largest draws and the first rows: batches shall not show it.
        shuffled = generator(self.mixture.seed, 'rows', number).permutation(len(room))
        row = np.where(row < 0, -1, shuffled[row])
        order = np.argsort(row, kind='stable')
        starts = np.searchsorted(row[order], np.arange(len(room) + 1))
        return Window(draws.take(order), starts, room.sum(0), dealt.left_over(), left_out)

    def _left_over(self, number: int) -> tuple[Draws, np.ndarray]:
        """Of the window's own draws: a function of the window alone, not of those before."""
        with self._lock:
            known = self._windows.get(number)
        if known is not None and known.done() and known.exception() is None:
            return known.result().left_over
        return self._dealt(number).left_over()

    def _dealt(self, number: int) -> _Dealt:
        draws = self.mixture.window(number, self.shares)
        sizes = self.sizes(draws)
        row, room = bins.deal(sizes, self.capacity, self.steps_per_window * self.batch_rows)
        return _Dealt(draws, sizes, row, room)

    def sizes(self, draws: Draws) -> np.ndarray:
        """int64[S, d]. Raises RuntimeError if the program ends, which waits for its threads."""
        sizes = np.zeros((len(draws), len(self.capacity)), np.int64)
        for number, task in enumerate(draws.tasks):
            which = np.flatnonzero(draws.task == number)
            for at in range(0, len(which), _PART):
                part = which[at : at + _PART]
                if not threading.main_thread().is_alive():
                    raise RuntimeError('the program has ended while its next draws were planned')
                sizes[part] = self.sizes_of(task, draws.index[part], draws.turn[part])
        return sizes

    def _window_size(self) -> tuple[int, dict[str, int]]:
        """(steps, draws of each task) of a window, from a first look at as many draws."""
        shares = self.mixture.shares(min(max(self.mixture.epoch(), LEAST), WINDOW))
        draws = self.mixture.window(0, shares)
        sizes = self.sizes(draws)
        rows = bins.fewest_rows(sizes, self.capacity) * self._spare(draws.task, sizes)
        steps = max(1, round(rows / self.batch_rows))
        scale = steps * self.batch_rows / rows
        return steps, {task: max(1, int(share * scale)) for task, share in shares.items()}

    def _spare(self, task: np.ndarray, sizes: np.ndarray) -> float:
        """Factor on the rows needed that leaves room for windows of larger draws."""
        total = [int(x) for x in sizes.sum(0)]  # exact, for the same plan on every machine
        variance = [0.0] * len(total)
        for number in np.unique(task):
            of = sizes[task == number]
            sums, squares = of.sum(0), (of * of).sum(0)
            for d in range(len(total)):
                variance[d] += int(squares[d]) - int(sums[d]) ** 2 / len(of)
        capacity = [max(1, int(c)) for c in self.capacity]
        mean = max(t / c for t, c in zip(total, capacity))
        high = max(
            (t + _DEVIATIONS * math.sqrt(max(v, 0.0))) / c
            for t, v, c in zip(total, variance, capacity)
        )
        return high / mean if mean else 1.0
