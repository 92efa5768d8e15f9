"""Waiting for what another thread or process does."""

import time


def until(condition, seconds: float = 60) -> None:
    """Returns once the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'nothing came in time'
        time.sleep(0.01)
