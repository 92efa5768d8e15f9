"""Exit codes of all commands, and with them what a launcher may do next (launch/README.md).

Everything else, such as 137 of a killed process, says nothing and counts as FAULT.
"""

import contextlib
import os
import threading
from typing import NoReturn

DONE = 0
FAULT = 1  # Python's own code of an exception: no checkpoint was saved since the start
MISTAKE = 64  # of the user (EX_USAGE): the same command would fail again
INTERRUPTED = 75  # by a signal (EX_TEMPFAIL): the same command goes on
FAULT_AFTER_PROGRESS = 76  # a fault, but a newer checkpoint than at the start is on disk

PATIENCE = 5.0  # seconds for a file system to answer a process that is about to end

_progress = False
_newest: dict[str, int] = {}  # folder of checkpoints -> newest step when this process opened it


def made_progress() -> None:
    """To be called when something but a checkpoint is on disk that need not be done again."""
    global _progress
    _progress = True


def saves_in(folder: str | os.PathLike) -> None:
    """Checkpoints that appear in this folder from now on are progress."""
    _newest.setdefault(str(folder), _newest_step(folder))


def _newest_step(folder: str | os.PathLike) -> int:
    try:
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=-1)
    except OSError:
        return -1


def fault() -> int:
    """The exit code of a crash, or of the loss of another process."""

    def look() -> None:
        if any(_newest_step(folder) > step for folder, step in list(_newest.items())):
            made_progress()

    # On the disk, as this process may not know yet what its threads have saved; in a thread, as
    # the disk may be what is at fault.
    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    looking.join(PATIENCE)
    return FAULT_AFTER_PROGRESS if _progress else FAULT


def leave(code: int, message: str) -> NoReturn:
    """Prints and ends this process at once, whatever its threads are stuck in."""
    with contextlib.suppress(OSError):  # no stderr, or nobody who reads it
        os.write(2, f'\n{message}\n'.encode())
    os._exit(code)
