"""Samples in tar files: one by its range of bytes, or all from start to end."""

import io
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from absl import logging

from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.shards import sample, tar
from rf_jax.data.shards.index import BLOCK
from rf_jax.data.shards.ranged import Ranged
from rf_jax.data.shards.sample import Sample
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_AHEAD = 2**24  # bytes that a scan reads at a time


class Tar:
    """A `reader.Format`.

    `megabytes`: of what was read from a bucket, at most, that is held for samples needed soon. If
    blocks are dropped before their samples are needed, samples are read one by one instead.
    """

    def __init__(self, megabytes: int):
        self._ranges = ByteCache(megabytes)
        self._fetched = self._used = 0  # bytes; threads may lose a few
        self._one_by_one = False

    def read(self, path: str, samples: np.ndarray, row: int, near: range) -> Sample:
        return sample.from_members(*tar.members(self._bytes(path, samples, row, near)))

    def scan(self, path: str) -> Iterator[tuple[str, Callable[[], Sample], int, int]]:
        file = io.BufferedReader(Ranged(path), _AHEAD)
        try:
            tar.check_uncompressed(file.peek(1))
            for key, members, offset, blocks in tar.scan(file):
                yield key, partial(sample.from_members, key, members), offset, blocks
        except tar.Unsuitable as error:
            raise UserError(f'the shard {path} is {error}') from None

    def _bytes(self, path: str, samples: np.ndarray, row: int, near: range) -> bytes:
        start, length = _range(samples[row], samples[row])
        if storage.is_local(path) or self._one_by_one:
            return _read(path, start, length)
        begin, many = _range(samples[near[0]], samples[near[-1]])

        def fetch() -> bytes:
            self._fetched += many
            return _read(path, begin, many)

        block = self._ranges.get((path, begin), fetch)
        self._used += length
        self._check_cache()
        return block[start - begin : start - begin + length]

    def _check_cache(self) -> None:
        """With room for two windows, three quarters are used by the time that this looks."""
        if self._fetched > 2 * self._ranges.limit and self._used < self._fetched / 2:
            self._one_by_one = True
            logging.warning(
                'data.cache_megabytes=%d holds less than two windows of shards in a bucket (%.0f '
                'times as many bytes were read as used): samples are now read one by one, which is '
                'slower; raise it (docs/data.md#lanes-planning-on-many-hosts)',
                *(self._ranges.limit // 2**20, self._fetched / self._used),
            )


def _range(first: np.ndarray, last: np.ndarray) -> tuple[int, int]:
    """(start, length) in bytes from one sample to the end of another."""
    start = int(first['offset'])
    end = int(last['offset']) + int(last['blocks'])
    return start * BLOCK, (end - start) * BLOCK


def _read(path: str, start: int, length: int) -> bytes:
    try:
        return storage.read_range(path, start, length)
    except FileNotFoundError:
        raise UserError(
            f'the shard {path} is gone since the start of the run; put it back and start again'
        ) from None
