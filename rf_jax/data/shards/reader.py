"""Random access to the samples of many shards, through their indices."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from rf_jax.data.records import BadImage
from rf_jax.data.shards import index
from rf_jax.data.shards.index import IMAGE, SAMPLE, Index
from rf_jax.data.shards.opened import Opened
from rf_jax.data.shards.sample import Sample
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

TOGETHER = 64  # samples that follow each other in the order of a pass, read from a bucket at once
# Indices held at a time, of all sets together.
_MAPPED = Opened[Index](2**8)  # each is an open file, of 1,024 that a process may usually have
_READ = Opened[Index](2**11)  # of buckets, about 1 GB
_THREADS = 16


class Format(Protocol):
    """How samples lie in a shard: `tar_format.Tar`, `array_record_format.ArrayRecord`."""

    def read(self, path: str, samples: np.ndarray, row: int, near: range) -> Sample:
        """Sample `row` of a shard whose index has SAMPLE[S]; those of `near` will be read soon.

        Raises ValueError if it is not as the index says, UserError if the shard is gone.
        """

    def scan(self, path: str) -> Iterator[tuple[str, Callable[[], Sample], int, int]]:
        """(name, its sample, offset, length in blocks) of everything in a shard, in order.

        The function raises what is wrong with one sample as `sample.from_members` does. Raises
        ValueError where the shard is damaged or ends too early.
        """


class Shards:
    """Shards of one kind, with their samples numbered consecutively across shards.

    `paths`: of the shards. `counts`: samples of each. `open_index(path)`: the index of a shard.
    """

    def __init__(
        self,
        paths: Sequence[str],
        counts: Sequence[int],
        open_index: Callable[[str], Index],
        format: Format,
    ):
        self._paths = list(paths)
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self._open_index = open_index
        self._opened = _MAPPED if any(map(storage.is_local, self._paths)) else _READ
        self._own = object()  # of the keys there: another set may count with another tokenizer
        self._format = format

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def digest(self) -> str:
        """Of how many samples each shard has."""
        return hashlib.blake2b(self._starts.tobytes(), digest_size=8).hexdigest()

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """SAMPLE[S] of samples int64[S]. Raises UserError for an index that cannot be read."""
        found = np.empty(len(numbers), SAMPLE)
        self._open(numbers)
        for shard, where, rows in self._by_shard(numbers):
            found[where] = self._index(shard).samples[rows]
        return found

    def sample(self, number: int) -> np.ndarray:
        """SAMPLE[] of one sample: `samples` takes ten times as long for it."""
        shard = int(np.searchsorted(self._starts, number, 'right')) - 1
        return self._index(shard).samples[number - int(self._starts[shard])]

    def images(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All images of conversations int64[S]: (IMAGE[M], int64[M]: whose each is)."""
        owners, images = [], []
        self._open(numbers)
        for shard, where, rows in self._by_shard(numbers):
            found = self._index(shard)
            samples = found.samples[rows]
            counts = samples['images'].astype(np.int64)
            starts = np.repeat(index.first(samples) - np.cumsum(counts) + counts, counts)
            images.append(found.images[starts + np.arange(counts.sum())])
            owners.append(np.repeat(where, counts))
        if not images:
            return np.zeros(0, IMAGE), np.zeros(0, np.int64)
        return np.concatenate(images), np.concatenate(owners)

    def read(self, number: int) -> Sample:
        """Raises BadImage if the sample is not as the index says, UserError if it is gone."""
        shard = int(np.searchsorted(self._starts, number, 'right')) - 1
        row = number - int(self._starts[shard])
        samples = self._index(shard).samples
        # Numbered through all shards, as in the order of a pass (`mixture.Mixture.together`).
        first = number // TOGETHER * TOGETHER - int(self._starts[shard])
        near = range(max(first, 0), min(first + TOGETHER, len(samples)))
        try:
            return self._format.read(self._paths[shard], samples, row, near)
        except UserError:  # a ValueError too
            raise
        except ValueError as error:
            raise BadImage(f'sample {row} of {self._paths[shard]}: {error}') from None

    def _open(self, numbers: np.ndarray) -> None:
        """Opens the indices of many samples at a time: from a bucket, each is a request."""
        shards = np.unique(np.searchsorted(self._starts, numbers, 'right') - 1).tolist()
        shards = [shard for shard in shards if (self._own, shard) not in self._opened]
        if len(shards) > 1:
            with ThreadPoolExecutor(min(len(shards), _THREADS)) as pool:
                list(pool.map(self._index, shards))

    def _index(self, shard: int) -> Index:
        return self._opened.get((self._own, shard), lambda: self._checked(shard))

    def _checked(self, shard: int) -> Index:
        found = self._open_index(self._paths[shard])
        expected = int(self._starts[shard + 1] - self._starts[shard])
        if len(found) != expected:
            raise UserError(
                f'{index.path_of(self._paths[shard])} has {len(found):,} samples, expected '
                f'{expected:,}: it is of another shard; prepare or index the set again'
            )
        return found

    def _by_shard(self, numbers: np.ndarray):
        """(shard, positions in `numbers`, rows of the shard) of each shard that has some."""
        shards = np.searchsorted(self._starts, numbers, 'right') - 1
        order = np.argsort(shards, kind='stable')
        ends = np.flatnonzero(np.diff(shards[order], append=-1)) + 1
        for start, end in zip(np.concatenate([[0], ends[:-1]]), ends):
            where = order[start:end]
            shard = int(shards[where[0]])
            yield shard, where, numbers[where] - self._starts[shard]
