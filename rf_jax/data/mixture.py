"""Which example of each task comes when: an endless shuffled order that can be read anywhere.

Position k of task t is example `shuffled(k mod count)` of epoch `k // count`, so every example of a
task appears exactly once per epoch. In large sets, blocks of consecutive examples are shuffled, and
the packing plan shuffles the examples within a window of blocks. The shuffle is computed for single
positions and never stored: a billion examples cost what a thousand do, and any window of the order
is a function of (seed, window).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from rf_jax.data.hashing import hash64
from rf_jax.runtime.rng import fold, generator

_ROUNDS = 8  # of two half-rounds each; with four, tasks of a few examples are visibly biased


@dataclass(frozen=True)
class Example:
    """One example of a task in one epoch; all of its randomness derives from these fields.

    `index`: among the examples of the task. `epoch`: earlier epochs of the task.
    """

    task: str
    index: int
    epoch: int


@dataclass(frozen=True)
class Examples:
    """S examples as arrays. `task`: int16[S] into `tasks`; `index`, `epoch`: int64[S]."""

    tasks: tuple[str, ...]
    task: np.ndarray
    index: np.ndarray
    epoch: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def take(self, where) -> 'Examples':
        """Those at `where`: anything that indexes an array."""
        return replace(
            self, task=self.task[where], index=self.index[where], epoch=self.epoch[where]
        )

    def list(self) -> list[Example]:
        """As one object each: only for the few examples of a row."""
        names = (self.tasks[task] for task in self.task)
        return [Example(*each) for each in zip(names, self.index.tolist(), self.epoch.tolist())]


def concatenate(parts: list[Examples]) -> Examples:
    """All parts in order; they share the same `tasks`."""
    arrays = (np.concatenate([getattr(p, n) for p in parts]) for n in ('task', 'index', 'epoch'))
    return Examples(parts[0].tasks, *arrays)


@dataclass(frozen=True)
class Mixture:
    """Some examples of each task, and how often each task is sampled.

    `counts`: examples of each task; `weights`: sampling weight of each task, on any scale. `first`:
    index of the first of them, 0 by default. `together`: this many consecutive examples stay
    together in the order, 1 by default, so that reading them from a bucket is one request.
    """

    counts: Mapping[str, int]
    weights: Mapping[str, float]
    seed: int
    first: Mapping[str, int] = field(default_factory=dict)
    together: Mapping[str, int] = field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks with a weight above 0."""
        return tuple(task for task, weight in self.weights.items() if weight > 0)

    def examples_per_epoch(self) -> float:
        """Examples, of all tasks, until the first task completes an epoch.

        That is the smallest task relative to its weight.
        """
        scale = min(self.counts[task] / self.weights[task] for task in self.tasks)
        return scale * sum(self.weights[task] for task in self.tasks)

    def examples_per_task(self, total: float) -> dict[str, int]:
        """About `total` examples divided among the tasks by weight, at least one of each."""
        scale = total / sum(self.weights[task] for task in self.tasks)
        return {task: max(1, round(scale * self.weights[task])) for task in self.tasks}

    def window(
        self, number: int, per_task: Mapping[str, int], starts: Mapping[str, int] | None = None
    ) -> Examples:
        """Window `number`, of `per_task` consecutive examples of each task, in random order.

        `starts`: the position of each task's first example in its endless order, `number` windows
        of this size by default; the tasks of all windows must then be the same.
        """
        tasks = self.tasks if starts is None else tuple(starts)
        parts = []
        for at, task in enumerate(tasks):
            size = per_task.get(task, 0)
            start = number * size if starts is None else starts[task]
            index, epochs = self._consecutive(task, start, size)
            parts.append(Examples(tasks, np.full(size, at, np.int16), index, epochs))
        examples = concatenate(parts)
        return examples.take(generator(self.seed, 'mix', number).permutation(len(examples)))

    def _consecutive(self, task: str, start: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(index, epoch) of the examples at `size` positions of the order of a task."""
        count, together = self.counts[task], self.together.get(task, 1)
        # The first position in Python's integers: it has no bound.
        epoch, first = divmod(start, count)
        positions = first + np.arange(size)
        epochs = epoch + positions // count
        keys = hash64(np.uint64(fold(self.seed, 'pass', task)) + epochs.astype(np.uint64))
        place, blocks = positions % count, count // together
        index = place.copy()  # what does not fill a block comes last in a pass
        whole = place < blocks * together
        block = shuffled(place[whole] // together, max(blocks, 1), keys[whole])
        index[whole] = block * together + place[whole] % together
        return index + self.first.get(task, 0), epochs


def shuffled(positions: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """int64[S]: where a random permutation of [0, count) takes each position; a key each.

    A Feistel network permutes the numbers of as many bits as `count` needs. A result of `count` or
    more is permuted again until it is below `count`, which gives a permutation of [0, count) (Black
    and Rogaway, "Ciphers with arbitrary finite domains", 2002): fewer than two tries on average.
    """
    if count < 1 or count > 2**62:
        raise ValueError(f'a task needs 1 to 2**62 examples, not {count}')
    bits = (count - 1).bit_length()
    permuted = np.array(positions, np.uint64)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), permuted.shape)
    outside = np.arange(len(permuted))
    while len(outside):
        permuted[outside] = _feistel(permuted[outside], bits, keys[outside])
        outside = outside[permuted[outside] >= count]
    return permuted.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, 2**bits): in turn, each half is XORed with a hash of the other."""
    low = np.uint64(bits // 2)
    low_mask, high_mask = (np.uint64(2**n - 1) for n in (bits // 2, bits - bits // 2))
    left, right = x >> low, x & low_mask
    for _ in range(_ROUNDS):
        keys = hash64(keys)
        left = left ^ (hash64(right + keys) & high_mask)
        keys = hash64(keys)
        right = right ^ (hash64(left + keys) & low_mask)
    return left << low | right
