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

from rf_jax.data import lanes, layout
from rf_jax.data.batch import Batch
from rf_jax.data.slots import Slots
from rf_jax.runtime.errors import FAILURE, Unavailable, require

_EXTRA_SLOTS = 6  # beyond data.prefetch: batches in grain's queues, and what Slots.write keeps


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
    data, channels: int, open_: Callable, rows: np.ndarray, steps: range, counts: Counter
) -> Iterator[Batch]:
    """Rows `rows` of the batches of some steps. `open_(rows)`, which can be pickled, gives the
    `pipeline.Batches` of some rows. Adds to `counts` what the workers count.

    Raises what a worker raises, and Unavailable if one is killed.
    """
    own = shares(data, rows)
    like = layout.empty(dict(data.capacity), channels, (len(own[0]),))
    slots = [Slots(like, data.prefetch + _EXTRA_SLOTS) for _ in own]
    elements = _started(data, _Parts(open_, own, steps, slots))
    try:
        for number, parts in enumerate(elements):
            for part in parts:
                counts.update(part['counts'])
            yield _joined(number, [part['batch'] for part in parts], slots)
    except RuntimeError as error:
        if 'exit code' not in str(error):
            raise
        raise Unavailable(
            f'a process of data.workers was killed ({error}); is there too little memory? Each '
            'has data.cache_megabytes, data.prefetch batches and the sources'
        ) from None
    finally:
        elements.close()
        for each in slots:
            each.close()


def _started(data, parts: '_Parts') -> grain.DatasetIterator:
    """Lists of the elements of all workers."""
    if not flags.FLAGS.is_parsed():  # grain has flags; a notebook parses none
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(parts).to_iter_dataset(
        grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=data.prefetch)
    )
    # Worker k of n gets elements k, k + n, ...
    processes = grain.MultiprocessingOptions(num_workers=data.workers)
    dataset = dataset.mp_prefetch(processes, worker_init_fn=_begin)
    return iter(dataset.batch(data.workers, batch_fn=list))


def _joined(number: int, batches: Sequence[Batch | None], slots: Sequence[Slots]) -> Batch:
    batches = [own if own else each.read(number) for own, each in zip(batches, slots)]
    joined = {name: np.concatenate([each[name] for each in batches]) for name in batches[0]}
    for each in slots:
        each.done(number)
    return joined


class _Parts:
    """Random access, the interface of a grain data source: element i * n + k of n workers has
    the rows of worker k of step i as 'batch', None if they are in its slots, and as 'counts' what
    it has counted since its last element.
    """

    def __init__(
        self,
        open_: Callable,
        shares: Sequence[np.ndarray],
        steps: range,
        slots: Sequence[Slots],
    ):
        self._open, self._shares, self._steps, self._slots = open_, shares, steps, slots
        self._lock, self._batches = threading.Lock(), None  # made in the worker
        self._sent: Counter = Counter()  # of what it has counted

    def __reduce__(self):
        return type(self), (self._open, self._shares, self._steps, self._slots)

    def __len__(self) -> int:
        return len(self._steps) * len(self._shares)

    def __getitem__(self, index: int) -> dict:
        number, worker = divmod(int(index), len(self._shares))
        with self._lock:
            if self._batches is None:
                self._batches = self._open(self._shares[worker])
        batch = self._batches.batch(self._steps[number])
        with self._lock:  # other threads count meanwhile, so nothing is taken from it
            counts = Counter(self._batches.counts)
            new, self._sent = counts - self._sent, counts
        written = self._slots[worker].write(number, batch)
        return {'batch': None if written else batch, 'counts': dict(new)}


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
