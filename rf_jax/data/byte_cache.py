"""A cache of what is soon used again: decoded images, ranges of files in a bucket."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeVar

import numpy as np

Value = TypeVar('Value', bytes, np.ndarray)


class ByteCache:
    """An LRU cache of bytes or arrays, of at most `megabytes` or one value. Safe to share between
    threads: each value is made once, by the thread that asks first; the others wait for it.
    """

    def __init__(self, megabytes: int):
        self.limit = megabytes * 2**20
        self.held = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, Future] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of `key`, from `make()` if it is not here. Raises what `make` raises."""
        with self._lock:
            mine = key not in self._entries
            found = self._entries.setdefault(key, Future())
            self._entries.move_to_end(key)
        if mine:
            self._make(key, found, make)
        return found.result()

    def _make(self, key: Hashable, found: Future, make: Callable[[], Value]) -> None:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                self._entries.pop(key, None)
            found.set_exception(error)
            return
        with self._lock:
            found.set_result(value)
            self.held += memoryview(value).nbytes
            while self.held > self.limit:
                oldest = next(k for k, future in self._entries.items() if future.done())
                if oldest == key:
                    break
                self.held -= memoryview(self._entries.pop(oldest).result()).nbytes
