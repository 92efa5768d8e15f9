"""Batches made in processes of their own (`data.workers`), where one interpreter does not suffice.

Each process has some lanes of the rows, which it plans and reads alone, for every step.
"""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection

import grain
import numpy as np
from absl import flags, logging

from rf_jax.data import lanes
from rf_jax.data.batch import Batch
from rf_jax.runtime.errors import FAILURE, Unavailable, require

_SHARED = 2**16  # bytes: larger arrays come through shared memory, smaller ones through a pipe


def shares(data, rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each worker, of the rows of a process. Raises UserError if its lanes cannot be
    divided.
    """
    lane = np.asarray(rows) // (data.batch_size // lanes.count(data))
    own = np.unique(lane)
    require(
        len(own) % data.workers == 0,
        f'data.workers={data.workers} must divide the {len(own)} lanes of this process: raise '
        'data.lanes (docs/data.md)',
    )
    return [rows[np.isin(lane, each)] for each in np.split(own, data.workers)]


def iterate(
    data, open_: Callable, rows: np.ndarray, start: int, stop: int, counts: Counter
) -> Iterator[Batch]:
    """Rows `rows` of batches start .. stop - 1. `open_(rows)`, which can be pickled, gives the
    `pipeline.Batches` of some rows. Adds to `counts` what the workers count.

    Raises what a worker raises, and Unavailable if one is killed.
    """
    if not flags.FLAGS.is_parsed():  # grain has flags; a notebook parses none
        flags.FLAGS.mark_as_parsed()
    parts = _Parts(open_, shares(data, rows), start, stop)
    dataset = grain.MapDataset.source(parts).to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    )
    shared = grain.experimental.DatasetOptions(min_shm_size=_SHARED)
    dataset = grain.experimental.WithOptionsIterDataset(dataset, shared)
    # Worker k of n gets elements k, k + n, ...
    workers = grain.MultiprocessingOptions(num_workers=data.workers)
    dataset = dataset.mp_prefetch(workers, worker_init_fn=_begin)
    return _joined(iter(dataset.batch(data.workers, batch_fn=list)), counts)


def _joined(parts: grain.DatasetIterator, counts: Counter) -> Iterator[Batch]:
    try:
        # Not a loop over `parts`: what it held would keep shared memory until the next batch.
        while (batch := _one(next(parts, None), counts)) is not None:
            yield batch
    except RuntimeError as error:
        if 'exit code' not in str(error):
            raise
        raise Unavailable(
            f'a process of data.workers was killed ({error}); is there too little memory? Each '
            'has data.cache_megabytes, data.prefetch batches and the sources'
        ) from None
    finally:
        parts.close()


def _one(parts: Sequence[dict] | None, counts: Counter) -> Batch | None:
    if parts is None:
        return None
    for part in parts:
        counts.update(part['counts'])
    batches = [part['batch'] for part in parts]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


class _Parts:
    """Random access, the interface of a grain data source: element step * n + k of n workers has
    the rows of worker k as 'batch', and as 'counts' what it has counted since its last element.
    """

    def __init__(self, open_: Callable, shares: Sequence[np.ndarray], start: int, stop: int):
        self._open, self._shares, self._start, self._stop = open_, shares, start, stop
        self._lock, self._batches = threading.Lock(), None  # made in the worker
        self._sent: Counter = Counter()  # of what it has counted

    def __reduce__(self):
        return type(self), (self._open, self._shares, self._start, self._stop)

    def __len__(self) -> int:
        return max(0, self._stop - self._start) * len(self._shares)

    def __getitem__(self, index: int) -> dict:
        step, worker = divmod(int(index), len(self._shares))
        with self._lock:
            if self._batches is None:
                self._batches = self._open(self._shares[worker])
        batch = self._batches.batch(self._start + step)
        with self._lock:  # other threads count meanwhile, so nothing is taken from it
            counts = Counter(self._batches.counts)
            new, self._sent = counts - self._sent, counts
        return {'batch': batch, 'counts': dict(new)}


def _begin(index: int, count: int) -> None:
    """In each worker: it ends with the process that started it, and only with that."""
    del index, count
    logging.set_verbosity(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):  # the run ends after its step
        signal.signal(number, signal.SIG_IGN)

    def end() -> None:
        connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(FAILURE)

    threading.Thread(target=end, daemon=True).start()
