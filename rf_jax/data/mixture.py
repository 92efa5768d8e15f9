"""Which sample is drawn when: an endless order of each task, any part of it without the rest.

Draw k of task t is sample `shuffled(k mod count)` in pass `k // count`, so every sample of a task
is drawn exactly once a pass. The shuffle is a function of one position, not an array: a billion
samples cost what a thousand do, and any window of the order is a function of (seed, window).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rf_jax.runtime.rng import fold, generator

_ROUNDS = 8  # of two half-rounds each; with four, tasks of a few samples are visibly biased


@dataclass(frozen=True)
class Draw:
    """One sample of one task in one pass: everything random about it folds from these."""

    task: str
    index: int
    turn: int


@dataclass(frozen=True)
class Draws:
    """S draws as arrays. `task`: int8[S] into `tasks`; `index`, `turn`: int64[S]."""

    tasks: tuple[str, ...]
    task: np.ndarray
    index: np.ndarray
    turn: np.ndarray

    def __len__(self) -> int:
        return len(self.task)

    def take(self, where) -> 'Draws':
        """Those at `where`: anything that indexes an array."""
        return replace(self, task=self.task[where], index=self.index[where], turn=self.turn[where])

    def list(self) -> list[Draw]:
        """One object each, for the few of a batch."""
        names = (self.tasks[task] for task in self.task)
        return [Draw(*each) for each in zip(names, self.index.tolist(), self.turn.tolist())]


def joined(parts: list[Draws]) -> Draws:
    """One after another; all have equal `tasks`."""
    arrays = (np.concatenate([getattr(p, n) for p in parts]) for n in ('task', 'index', 'turn'))
    return Draws(parts[0].tasks, *arrays)


@dataclass(frozen=True)
class Mixture:
    """`counts`: samples that can serve each task; `weights`: draws per kind, any scale."""

    counts: Mapping[str, int]
    weights: Mapping[str, float]
    seed: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """Those that are drawn at all."""
        return tuple(task for task, weight in self.weights.items() if weight > 0)

    def epoch(self) -> float:
        """Draws, of all tasks, in which the smallest task relative to its weight is passed once."""
        scale = min(self.counts[task] / self.weights[task] for task in self.tasks)
        return scale * sum(self.weights[task] for task in self.tasks)

    def shares(self, draws: float) -> dict[str, int]:
        """About `draws` over the tasks by weight, at least one of each."""
        scale = draws / sum(self.weights[task] for task in self.tasks)
        return {task: max(1, round(scale * self.weights[task])) for task in self.tasks}

    def window(self, number: int, shares: Mapping[str, int]) -> Draws:
        """Draws number * share .. (number + 1) * share of every task, mixed in random order."""
        parts = []
        for at, task in enumerate(self.tasks):
            share, count = shares[task], self.counts[task]
            # The first in Python's integers: a window's number has no bound.
            turn, first = divmod(number * share, count)
            positions = first + np.arange(share)
            turns = turn + positions // count
            keys = mixed(np.uint64(fold(self.seed, 'pass', task)) + turns.astype(np.uint64))
            index = shuffled(positions % count, count, keys)
            parts.append(Draws(self.tasks, np.full(share, at, np.int8), index, turns))
        draws = joined(parts)
        return draws.take(generator(self.seed, 'mix', number).permutation(len(draws)))


def shuffled(positions: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """int64[S]: where a random permutation of [0, count) takes each position; a key each.

    A Feistel network permutes the numbers of as many bits as `count` needs; a number beyond
    `count` is permuted again until it is within, which permutes [0, count) (Black and Rogaway,
    "Ciphers with arbitrary finite domains", 2002). Less than two trials on average.
    """
    if count < 1 or count > 2**62:
        raise ValueError(f'a task has 1 .. 2**62 samples, not {count}')
    bits = (count - 1).bit_length()
    found = np.array(positions, np.uint64)
    keys = np.broadcast_to(np.asarray(keys, np.uint64), found.shape)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _feistel(found[outside], bits, keys[outside])
        outside = outside[found[outside] >= count]
    return found.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, 2**bits): each half in turn is changed by a hash of the other."""
    low = np.uint64(bits // 2)
    low_mask, high_mask = (np.uint64(2**n - 1) for n in (bits // 2, bits - bits // 2))
    left, right = x >> low, x & low_mask
    for _ in range(_ROUNDS):
        keys = mixed(keys)
        left = left ^ (mixed(right + keys) & high_mask)
        keys = mixed(keys)
        right = right ^ (mixed(left + keys) & low_mask)
    return left << low | right


def mixed(x: np.ndarray) -> np.ndarray:
    """A hash uint64 -> uint64, every bit from all bits (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over='ignore'):  # arithmetic modulo 2**64 is meant
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
