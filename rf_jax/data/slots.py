"""A ring buffer in shared memory that passes batches from one process to another.

It is reused for the whole run: to fault in fresh pages costs more than to copy a batch.
"""

import mmap
import os

import numpy as np

from rf_jax.data.batch import Batch

_ALIGNMENT = 64  # bytes


class Slots:
    """`count` slots for batches of the shapes of `like`. Unpickled in another process on this
    machine, it refers to the same memory.

    One process writes batches 0, 1, 2, ..., from any number of threads; the other reads them in
    order. Batch n is in slot n modulo `count`.
    """

    def __init__(self, like: Batch, count: int):
        """No slots on systems without anonymous shared memory, such as macOS."""
        kinds = {name: (each.dtype.str, each.shape) for name, each in like.items()}
        # Freed with the last process that has it open; /dev/shm is limited to 64 MB in containers.
        self._file = os.memfd_create('rf_jax_batches') if hasattr(os, 'memfd_create') else None
        path = f'/proc/{os.getpid()}/fd/{self._file}'
        self._attach(path, kinds, 0 if self._file is None else count)

    def __getstate__(self) -> tuple:
        return self._path, self._kinds, len(self._slots)

    def __setstate__(self, state: tuple) -> None:
        self._file = None
        self._attach(*state)

    def _attach(self, path: str, kinds: dict, count: int) -> None:
        self._path, self._kinds = path, kinds
        self._slots: list[Batch] = []
        if not count:
            return
        sizes = [np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in kinds.values()]
        *starts, each = np.cumsum([0, *(-(-size // _ALIGNMENT) for size in sizes)]) * _ALIGNMENT
        with open(path, 'r+b') as file:
            file.truncate(_ALIGNMENT + count * each)
            memory = mmap.mmap(file.fileno(), 0)
        self._read = np.ndarray((1,), np.int64, memory)  # how many batches have been read
        for at in range(_ALIGNMENT, len(memory), each):
            self._slots.append({
                name: np.ndarray(shape, dtype, memory, at + start)
                for (name, (dtype, shape)), start in zip(kinds.items(), starts)
            })  # fmt: skip

    def write(self, number: int, batch: Batch) -> bool:
        """Copies a batch into its slot; False if the batch there may not have been read yet."""
        # One more must have been read: other cores may see the count before the reads are over.
        if not self._slots or number - len(self._slots) > self._read[0] - 2:
            return False
        slot = self._slots[number % len(self._slots)]
        for name, array in batch.items():
            slot[name][...] = array
        return True

    def read(self, number: int) -> Batch:
        """Batch `number`, as views of its slot, which is overwritten after `done`."""
        return self._slots[number % len(self._slots)]

    def done(self, number: int) -> None:
        """Batch `number` and those before it have been read."""
        if self._slots:
            self._read[0] = number + 1

    def close(self) -> None:
        """Called by the process that made them, which can no longer pickle them."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
