"""The pools that a run samples from: the examples of one task, of all sources or of one of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from rf_jax.data import data_fields, indexed, layout, listed
from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.compose import Composer
from rf_jax.data.data_fields import TASKS
from rf_jax.data.records import is_indexed
from rf_jax.runtime.errors import UserError, require


class Pool(Protocol):
    """Examples of one task. `together`: this many consecutive ones are read at once.
    `has_text`: its texts are not captions.
    """

    task: str
    together: int
    has_images: bool
    has_text: bool

    def __len__(self) -> int: ...

    def sizes(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """int64[S, 6] as `layout.SIZES`, for int64[S]; decodes nothing."""

    def spans(
        self, index: int, epoch: int, counts: Counter, decode: bool = True
    ) -> list[layout.Span]:
        """The spans of an example. Raises BadImage if its image cannot be decoded."""

    def at(self, index: int) -> tuple[object, int]:
        """(source, number in it) of an example."""


class Pools(Mapping[str, Pool]):
    """Pools by name, and their weights.

    Without `data.weights`, examples of a task are sampled equally often, whichever source they are
    from. With them, each entry of `data.sources` has pools of its own.
    Raises UserError for a task that no source can serve, or weights that do not fit the sources.
    """

    def __init__(self, config, sources: Sequence, composer: Composer, cache: ByteCache):
        self._config = config
        self._weights = {t: float(config.data.tasks.get(t, 0.0)) for t in TASKS}
        if config.data.weights:
            _check_weights(config.data.weights, sources, config.data.sources)
            groups = [[source] for source in sources]
        else:  # those that list their examples in one pool of each task
            groups = [[s for s in sources if not is_indexed(s)]]
            groups += [[s] for s in sources if is_indexed(s)]
        self._pools: dict[str, Pool] = {}
        self._entry: dict[str, int] = {}  # of data.sources
        for number, group in enumerate(groups):
            for pool in filter(len, _pools(group, number, composer, config.seed, cache)):
                of = f' of {number}' if config.data.weights or _are_indexed(group) else ''
                self._pools[pool.task + of] = pool
                self._entry[pool.task + of] = number
        if any(pool.has_text for pool in self.of_task('text_only')):  # else captions are text too
            for name, pool in list(self._pools.items()):
                if pool.task == 'text_only' and not pool.has_text:
                    del self._pools[name]
        empty = [t for t in TASKS if self._weights[t] > 0 and not self.of_task(t)]
        require(
            any(self._weights.values()),
            'all of data.tasks are 0: set at least one weight, as data.tasks.text_to_image=1',
        )
        if empty:
            raise UserError(data_fields.unserved(config.data.sources, empty))

    def __getitem__(self, name: str) -> Pool:
        return self._pools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools)

    def __len__(self) -> int:
        return len(self._pools)

    def of_task(self, task: str) -> list[Pool]:
        return [pool for pool in self._pools.values() if pool.task == task]

    def count(self, task: str) -> int:
        """Examples of a task."""
        return sum(map(len, self.of_task(task)))

    def example(self, task: str, number: int) -> tuple[object, int]:
        """(source, number in it) of example `number` among all of a task."""
        for pool in self.of_task(task):
            if number < len(pool):
                return pool.at(number)
            number -= len(pool)
        raise IndexError(f'{task} has no example {number}')

    def phases(self) -> list[tuple[int, dict[str, float]]]:
        """(first step, weight of each pool), ascending."""
        if not self._config.data.weights:
            return [(0, self._shared({name: len(pool) for name, pool in self._pools.items()}))]
        return [
            (step, self._shared({name: weights[at] for name, at in self._entry.items()}))
            for step, weights in self._config.data.weights
        ]

    def _shared(self, shares: Mapping[str, float]) -> dict[str, float]:
        """The weight of each task, divided among its pools in these shares."""
        order = sorted(self._pools, key=lambda name: TASKS.index(self._pools[name].task))
        found = {}
        for name in order:
            task = self._pools[name].task
            total = sum(shares[n] for n, pool in self._pools.items() if pool.task == task)
            found[name] = self._weights[task] * (shares[name] / total if total else 0.0)
        require(
            any(found.values()),
            f'data.weights: with {tuple(shares.values())} no source serves any of data.tasks',
        )
        return found


def _are_indexed(group: Sequence) -> bool:
    return bool(group) and is_indexed(group[0])


def _pools(group: Sequence, entry: int, composer: Composer, seed: int, cache: ByteCache) -> list:
    if not _are_indexed(group):
        return list(listed.pools(group, composer, seed, cache).values())
    sets = group[0].open(composer.tokenizer, composer.data.cache_megabytes)
    return list(indexed.pools(group[0].name, sets, composer, seed, entry).values())


def _check_weights(weights, sources: Sequence, text: str) -> None:
    steps = []
    for entry in weights:
        match entry:
            case [int(step), [*of]] | (int(step), (*of,)) if len(of) == len(sources):
                steps.append(step)
                if all(isinstance(w, int | float) and w >= 0 for w in of) and sum(of) > 0:
                    continue
        raise UserError(
            f'data.weights has {entry!r}; expected (step, ({len(sources)} weights of at least 0)), '
            f'one weight for each of data.sources={text!r}, as in ((0, (3, 1)), (10000, (1, 1)))'
        )
    if steps[0] != 0 or steps != sorted(set(steps)):
        raise UserError(f'data.weights has steps {steps}; expected 0 first, then ascending ones')
