"""Exit codes of all commands, and with them what a launcher may do next (launch/README.md).

Everything else, such as 137 of a killed process, says nothing and counts as FAULT.
"""

import contextlib
import os
from typing import NoReturn

DONE = 0
FAULT = 1  # Python's own code of an exception: no checkpoint was saved since the start
MISTAKE = 64  # of the user (EX_USAGE): the same command would fail again
INTERRUPTED = 75  # by a signal (EX_TEMPFAIL): the same command goes on
FAULT_AFTER_PROGRESS = 76  # a fault, but a newer checkpoint than at the start is on disk

_progress = False


def made_progress() -> None:
    """To be called when something is on disk that another attempt need not do again."""
    global _progress
    _progress = True


def fault() -> int:
    """The exit code of a crash, or of the loss of another process."""
    return FAULT_AFTER_PROGRESS if _progress else FAULT


def leave(code: int, message: str) -> NoReturn:
    """Prints and ends this process at once, whatever its threads are stuck in."""
    with contextlib.suppress(OSError):  # no stderr, or nobody who reads it
        os.write(2, f'\n{message}\n'.encode())
    os._exit(code)
