"""Logs at intervals how far all processes have come, and how long the rest will take."""

import threading
import time
from collections.abc import Callable

from absl import logging

_EVERY = 10.0  # seconds


class Progress:
    """Logs while its block runs.

    `look()` gives (units done, samples in them); `total`: units in all.
    """

    def __init__(self, what: str, total: int, look: Callable[[], tuple[int, int]]):
        self._what, self._total, self._look = what, total, look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> 'Progress':
        self._began, self._first = time.monotonic(), self._look()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            self._log()
        self._log()

    def _log(self) -> None:
        try:
            units, samples = self._look()
        except (OSError, ValueError):  # the work itself raises it too
            return
        spent = time.monotonic() - self._began
        done = units - self._first[0]
        left = spent * (self._total - units) / done if done else float('nan')
        logging.info(
            '%s %d of %d, %s samples, %.0f samples/s, ETA %s',
            *(self._what, units, self._total, f'{samples:,}', (samples - self._first[1]) / spent),
            '?' if done == 0 else f'{left / 60:.1f} min',
        )
