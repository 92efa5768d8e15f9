"""Examples of TensorFlow Datasets in ArrayRecord files, read without TensorFlow."""

import functools
import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from rf_jax.data.shards import tfds_sample
from rf_jax.data.shards.opened import Opened
from rf_jax.data.shards.sample import Sample
from rf_jax.data.sources import tfds_features
from rf_jax.data.sources.tfds_features import Features
from rf_jax.runtime.errors import UserError

_TOGETHER = 256  # records that a scan reads at a time
_READERS = Opened(2**8)  # of all sets together; each is an open file


class ArrayRecord:
    """A `reader.Format`: an offset is the number of a record, and a length of 1 its conversation.

    A record with a captioned image and a conversation gives two samples. `name`: of the source;
    `folder`: that of the files and of features.json. Raises UserError if there is none, or it has
    nothing to learn from.
    """

    def __init__(self, name: str, folder: str, megabytes: int = 0):
        del megabytes  # files are on a disk
        self._parse, self._features = _features(name, folder)
        self._own = object()  # of the keys there: a later one must see a file that was replaced

    @property
    def depends_on(self) -> str:
        """What a sample depends on beside its record."""
        found = self._features
        return f'{found.image}, {found.words}, {found.talk}, {found.images}, {found.names}'

    def read(self, path: str, samples: np.ndarray, row: int, near: range) -> Sample:
        number = int(samples[row]['offset'])
        try:
            (record,) = self._reader(path).read([number])
        except (ValueError, RuntimeError, IndexError) as error:
            raise ValueError(_line(error)) from None
        is_talk = bool(samples[row]['blocks'])
        return tfds_sample.of(self._features, self._parse(record), f'{number}', is_talk)

    def scan(self, path: str) -> Iterator[tuple[str, Callable[[], Sample], int, int]]:
        try:
            reader = self._reader(path)
            count = reader.num_records()
            for start in range(0, count, _TOGETHER):
                numbers = range(start, min(start + _TOGETHER, count))
                for number, record in zip(numbers, reader.read(list(numbers))):
                    example = self._parse(record)
                    for is_talk in self._features.kinds():
                        read = partial(
                            tfds_sample.of, self._features, example, f'{number}', is_talk
                        )
                        yield f'record {number} of {path}', read, number, int(is_talk)
        except RuntimeError as error:
            raise ValueError(f'damaged or truncated: {_line(error)}') from None

    def _reader(self, path: str):
        return _READERS.get((self._own, path), lambda: _open(path))


def _open(path: str):
    from array_record.python.array_record_module import ArrayRecordReader

    if not os.path.exists(path):
        raise UserError(f'the shard {path} is gone since the start of the run')
    # Without this, every access reads whole chunks ahead.
    found = ArrayRecordReader(path, options='readahead_buffer_size:0')
    if not found.ok():
        raise ValueError('damaged, truncated or no ArrayRecord file')
    return found


def _features(name: str, folder: str) -> tuple[Callable[[bytes], dict], Features]:
    """(function from a record to an example, what to read of it)."""
    try:
        import array_record.python.array_record_module  # noqa: F401
        import tensorflow_datasets as tfds  # takes a second, and is an optional dependency
    except ImportError as error:
        raise UserError(
            f"data.sources: {name} needs tensorflow_datasets: pip install 'rf_jax[tfds]'"
        ) from error
    try:
        features = tfds.features.FeaturesDict.from_config(folder)
    except Exception as error:  # of many kinds
        raise UserError(
            f'data.sources: {name} needs the features.json that tensorflow_datasets writes beside '
            f'its files; {folder}/features.json cannot be read: {_line(error)}'
        ) from None
    found = tfds_features.find(tfds, features, name)
    return functools.partial(features.deserialize_example_np, decoders=found.decoders), found


def _line(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:160]
