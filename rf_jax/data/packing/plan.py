"""The packing plan: which examples go into which row of which batch, as pure integers.

The endless order of examples (`mixture.py`) is divided into windows, each of which fills the rows
of a whole number of steps. A step gives its window (`timeline.py`), and a window is planned without
those before it. An example that does not fit into its window moves to the next one; no example is
used twice. The plan depends on (sizes, mixture, capacities, batch size) alone, not on the number of
hosts, so a run can resume on any number of them. It holds only a few windows in memory.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from absl import logging

from rf_jax.data.mixture import Example, Examples, Mixture, concatenate
from rf_jax.data.packing import bins
from rf_jax.data.packing.timeline import Phase, Timeline
from rf_jax.runtime.rng import generator

WINDOW = 2**16  # most examples of a window, about: what a plan holds in memory
LEAST = 2**11  # fewest, about: even a small set is combined into ever new rows
_CHUNK = 2**9  # examples that are sized at a time: a program that ends waits for one chunk
_DEVIATIONS = 2  # windows vary: room for total sizes up to 2 standard deviations above the mean

SizesOf = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Packed:
    """A window's own examples: `row` int[S] of each, -1 if none has room; `room` int[rows, d]."""

    examples: Examples
    sizes: np.ndarray
    row: np.ndarray
    room: np.ndarray

    def left_over(self) -> tuple[Examples, np.ndarray]:
        left = self.row < 0
        return self.examples.take(left), self.sizes[left]


@dataclass(frozen=True)
class Window:
    """Examples sorted by row; row r holds `starts[r] .. starts[r + 1]`."""

    examples: Examples
    starts: np.ndarray
    room: np.ndarray  # int64[d], unused capacity of all rows together
    left_over: tuple[Examples, np.ndarray]  # own examples that move to the next window, and sizes
    left_out: int  # examples of the previous window that do not fit here either

    def row(self, number: int) -> list[Example]:
        return self.examples.take(slice(self.starts[number], self.starts[number + 1])).list()


class Plan:
    """Maps steps to rows of examples.

    `sizes_of(task, index, epoch)` gives int[S, d] for int64[S] indices and epochs, without decoding
    an image; `capacity` int[d]. `counts['examples_without_room']` counts the examples left out.
    `later`: mixtures of the same examples with other weights, and the steps from which they hold,
    ascending. `window`: most examples of a window, about.
    Raises ValueError when an example exceeds an empty row.
    """

    def __init__(
        self,
        mixture: Mixture,
        sizes_of: SizesOf,
        capacity,
        batch_size: int,
        counts: Counter | None = None,
        later: Sequence[tuple[int, Mixture]] = (),
        window: int | None = None,
    ):
        self.mixture = mixture
        self.sizes_of = sizes_of
        self.capacity = np.asarray(capacity, np.int64)
        self.batch_size = batch_size
        self.counts = Counter() if counts is None else counts
        self._windows: dict[int, Future] = {}
        self._lock = threading.Lock()  # reader threads share the plan
        self.most_examples = window or WINDOW
        self._phases = [(0, mixture), *later]
        self.tasks = tuple(dict.fromkeys(task for _, mixed in self._phases for task in mixed.tasks))
        self._timeline = Timeline(self.tasks)
        for first_step, mixed in self._phases:
            self._timeline.add(self._phase(first_step, mixed))
        first = self._timeline.window(0)
        self.steps_per_window, self.examples_per_task = first.steps, first.sizes

    @property
    def examples_per_window(self) -> int:
        return sum(self.examples_per_task.values())

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch of the smallest task, relative to its weight."""
        windows = self.mixture.examples_per_epoch() / self.examples_per_window
        return math.ceil(windows * self.steps_per_window)

    def rows(self, step: int, which: Iterable[int] | None = None) -> list[list[Example]]:
        """The examples of the rows `which` of global batch `step`; default: all rows."""
        span = self._timeline.at(step)
        window = self.window(span.number)
        self._prepare(span.number + 1)
        which = range(self.batch_size) if which is None else which
        at = step - span.first_step
        return [window.row(at * self.batch_size + i) for i in which]

    def window(self, number: int) -> Window:
        """Window `number`, planned by the thread that asks first; other threads wait for it."""
        future, mine = self._claim(number)
        if mine:
            self._resolve(number, future)
        return future.result()

    def _prepare(self, number: int) -> None:
        """Plans a window in the background, so that its first batch need not wait."""
        future, mine = self._claim(number)
        if mine:
            # Not a daemon: if Python killed it inside the tokenizer's C++, the process would abort.
            threading.Thread(target=self._resolve, args=(number, future)).start()

    def _claim(self, number: int) -> tuple[Future, bool]:
        """(future of the window, whether the caller must plan it)."""
        with self._lock:
            mine = number not in self._windows
            if mine:
                near = {n: f for n, f in self._windows.items() if abs(n - number) <= 2}
                self._windows = near | {number: Future()}
            return self._windows[number], mine

    def _resolve(self, number: int, future: Future) -> None:
        try:
            future.set_result(self._make_window(number))
        except BaseException as error:  # raised in every thread that waits for the window
            future.set_exception(error)

    def _make_window(self, number: int) -> Window:
        packed = self._packed(number)
        examples, row, room, left_out = packed.examples, packed.row, packed.room, 0
        carried, sizes = self._left_over(number - 1) if number else ((), None)
        if len(carried):
            at = bins.best_fit(sizes, room, self.capacity)
            examples, row = concatenate([examples, carried]), np.concatenate([row, at])
            left_out = int((at < 0).sum())
        if left_out:
            self.counts['examples_without_room'] += left_out
        if left_out > len(examples) // 100:
            logging.warning('no room for %d of %d examples', left_out, len(examples))
        # Packing starts with the largest examples and the first rows: shuffle, to hide that order.
        shuffled = generator(self.mixture.seed, 'rows', number).permutation(len(room))
        row = np.where(row < 0, -1, shuffled[row])
        order = np.argsort(row, kind='stable')
        starts = np.searchsorted(row[order], np.arange(len(room) + 1))
        return Window(examples.take(order), starts, room.sum(0), packed.left_over(), left_out)

    def _left_over(self, number: int) -> tuple[Examples, np.ndarray]:
        """Own examples of the window that have no room: independent of the windows before it."""
        with self._lock:
            known = self._windows.get(number)
        if known is not None and known.done() and known.exception() is None:
            return known.result().left_over
        return self._packed(number).left_over()

    def _packed(self, number: int) -> _Packed:
        """The window without what earlier windows leave over."""
        span = self._timeline.window(number)
        mixture = [mixed for first, mixed in self._phases if first <= span.first_step][-1]
        examples = mixture.window(number, span.sizes, span.starts)
        sizes = self.sizes(examples)
        row, room = bins.pack(sizes, self.capacity, span.steps * self.batch_size)
        return _Packed(examples, sizes, row, room)

    def sizes(self, examples: Examples) -> np.ndarray:
        """int64[S, d]. Raises RuntimeError when the program ends, which waits for its threads."""
        sizes = np.zeros((len(examples), len(self.capacity)), np.int64)
        for number, task in enumerate(examples.tasks):
            which = np.flatnonzero(examples.task == number)
            for at in range(0, len(which), _CHUNK):
                part = which[at : at + _CHUNK]
                if not threading.main_thread().is_alive():
                    raise RuntimeError('the program ended while planning the next examples')
                sizes[part] = self.sizes_of(task, examples.index[part], examples.epoch[part])
        return sizes

    def _phase(self, first_step: int, mixture: Mixture) -> Phase:
        """Steps and examples of a window, estimated from the sizes of the first ones."""
        total = min(max(mixture.examples_per_epoch(), LEAST), self.most_examples)
        per_task = mixture.examples_per_task(total)
        examples = mixture.window(0, per_task, self._timeline.positions(first_step))
        sizes = self.sizes(examples)
        rows = bins.fewest_rows(sizes, self.capacity) * self._headroom(examples.task, sizes)
        steps = max(1, round(rows / self.batch_size))
        scale = steps * self.batch_size / rows
        sizes = {task: max(1, int(count * scale)) for task, count in per_task.items()}
        return Phase(first_step, steps, sizes)

    def _headroom(self, task: np.ndarray, sizes: np.ndarray) -> float:
        """Factor on the number of rows that leaves room for windows with larger examples."""
        total = [int(x) for x in sizes.sum(0)]  # exact, so that every machine makes the same plan
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
