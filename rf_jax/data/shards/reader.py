"""Random access to the samples of many shards, through their indices."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.records import BadImage
from rf_jax.data.shards import index, sample, tar
from rf_jax.data.shards.index import BLOCK, IMAGE, SAMPLE, Index
from rf_jax.data.shards.sample import Sample
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

TOGETHER = 64  # samples that follow each other in the order of a pass, read from a bucket at once
_OPEN = 2**10  # most indices held at a time


class Shards:
    """Shards of one kind, their samples numbered through.

    `paths`: of the shards. `counts`: samples of each. `open_index(path)`: the index of a shard.
    `megabytes`: of what was read from a bucket, at most, that is held for samples needed soon.
    """

    def __init__(
        self,
        paths: Sequence[str],
        counts: Sequence[int],
        open_index: Callable[[str], Index],
        megabytes: int,
    ):
        self._paths = list(paths)
        self._starts = np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))])
        self._open_index = open_index
        self._indices: OrderedDict[int, Index] = OrderedDict()
        self._lock = threading.Lock()
        self._ranges = ByteCache(megabytes)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def samples(self, numbers: np.ndarray) -> np.ndarray:
        """SAMPLE[S] of samples int64[S]. Raises UserError for an index that cannot be read."""
        found = np.empty(len(numbers), SAMPLE)
        for shard, where, rows in self._by_shard(numbers):
            found[where] = self._index(shard).samples[rows]
        return found

    def images(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(IMAGE[M], int64[M]: whose it is) of all images of conversations int64[S]."""
        owners, images = [], []
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
        data = self._bytes(shard, row)
        try:
            return sample.from_members(*tar.members(data))
        except ValueError as error:
            raise BadImage(f'sample {row} of {self._paths[shard]}: {error}') from None

    def where(self, number: int) -> str:
        """Names a sample in messages."""
        shard = int(np.searchsorted(self._starts, number, 'right')) - 1
        return f'sample {number - int(self._starts[shard])} of {self._paths[shard]}'

    def _bytes(self, shard: int, row: int) -> bytes:
        path, samples = self._paths[shard], self._index(shard).samples
        start, length = _range(samples[row], samples[row])
        if storage.is_local(path):
            return storage.read_range(path, start, length)
        first = row // TOGETHER * TOGETHER
        last = min(first + TOGETHER, len(samples)) - 1
        begin, many = _range(samples[first], samples[last])
        block = self._ranges.get((shard, first), lambda: storage.read_range(path, begin, many))
        return block[start - begin : start - begin + length]

    def _index(self, shard: int) -> Index:
        with self._lock:
            if shard in self._indices:
                self._indices.move_to_end(shard)
                return self._indices[shard]
        found = self._open_index(self._paths[shard])
        expected = int(self._starts[shard + 1] - self._starts[shard])
        if len(found) != expected:
            raise UserError(
                f'{index.path_of(self._paths[shard])} has {len(found):,} samples, expected '
                f'{expected:,}: it is of another shard; prepare or index the set again'
            )
        with self._lock:
            self._indices[shard] = found
            while len(self._indices) > _OPEN:
                self._indices.popitem(last=False)
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


def _range(first: np.ndarray, last: np.ndarray) -> tuple[int, int]:
    """(start, length) in bytes from one sample to the end of another."""
    start = int(first['offset'])
    end = int(last['offset']) + int(last['blocks'])
    return start * BLOCK, (end - start) * BLOCK
