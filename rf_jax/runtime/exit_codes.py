"""Exit codes of all commands, which tell a launcher what to do next (launch/README.md).

Any other code, such as 137 of a killed process, is treated as FAILURE.
"""

import contextlib
import os
import threading
from typing import NoReturn

DONE = 0
FAILURE = 1  # as for any Python exception: no checkpoint was saved since the start
USER_ERROR = 64  # EX_USAGE: the same command would fail again
INTERRUPTED = 75  # by a signal (EX_TEMPFAIL): the same command resumes
FAILURE_AFTER_PROGRESS = 76  # failed, but saved a checkpoint since the start

TIMEOUT = 5.0  # seconds to wait for the file system before exiting

_progress = False
_newest: dict[str, int] = {}  # checkpoint folder -> newest step when this process opened it


def record_progress() -> None:
    """Records that work other than a checkpoint was saved and need not be repeated."""
    global _progress
    _progress = True


def watch_checkpoints(folder: str | os.PathLike) -> None:
    """Counts checkpoints that appear in this folder from now on as progress."""
    _newest.setdefault(str(folder), _newest_step(folder))


def _newest_step(folder: str | os.PathLike) -> int:
    try:
        return max((int(name) for name in os.listdir(folder) if name.isdecimal()), default=-1)
    except OSError:
        return -1


def failure_code() -> int:
    """The exit code after a crash or the loss of another process."""

    def look() -> None:
        if any(_newest_step(folder) > step for folder, step in list(_newest.items())):
            record_progress()

    # Checked on disk, because this process may not know yet what its threads have saved; in a
    # thread, because the disk itself may hang.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return FAILURE_AFTER_PROGRESS if _progress else FAILURE


def exit_now(code: int, message: str) -> NoReturn:
    """Prints the message and exits at once, even if threads are stuck."""
    with contextlib.suppress(OSError):  # no stderr, or no reader
        os.write(2, f'\n{message}\n'.encode())
    os._exit(code)
