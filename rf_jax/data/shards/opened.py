"""What all shards of a process hold open: the number of open files is limited for a process."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar('T')


class Opened(Generic[T]):
    """At most `most` at a time; what was not used for longest goes first. For any thread."""

    def __init__(self, most: int):
        self._most = most
        self._held: OrderedDict[Hashable, T] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._held

    def get(self, key: Hashable, open_: Callable[[], T]) -> T:
        """What is open under this key, or else `open_()`; raises what that raises."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        found = open_()
        with self._lock:
            self._held[key] = found
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return found
