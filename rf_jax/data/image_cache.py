"""A cache of decoded images that are needed again soon."""

import threading
from collections import OrderedDict

import numpy as np


class ImageCache:
    """An LRU cache of decoded patches. Safe to share between reader threads."""

    def __init__(self, megabytes: int):
        self.limit = megabytes * 2**20
        self.held = 0
        self.lock = threading.Lock()
        self.entries: OrderedDict = OrderedDict()

    def get(self, key, make) -> np.ndarray:
        with self.lock:
            if key in self.entries:
                self.entries.move_to_end(key)
                return self.entries[key]
        value = make()
        with self.lock:
            if key not in self.entries:
                self.entries[key] = value
                self.held += value.nbytes
            while self.held > self.limit and len(self.entries) > 1:
                self.held -= self.entries.popitem(last=False)[1].nbytes
        return value
