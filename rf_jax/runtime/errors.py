"""How a command ends: errors caused by user input, which commands print as one line, and the exit
codes of all commands, which tell a launcher what to do next (launch/README.md).

Any other code, such as 137 of a killed process, is treated as FAILURE.
"""

import contextlib
import difflib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

DONE = 0
FAILURE = 1  # as for any Python exception: no checkpoint was saved since the start
USER_ERROR = 64  # EX_USAGE: the same command would fail again
INTERRUPTED = 75  # by a signal (EX_TEMPFAIL): the same command resumes
FAILURE_AFTER_PROGRESS = 76  # failed, but saved a checkpoint since the start

TIMEOUT = 5.0  # seconds to wait for the file system before exiting

_progress = False
# Checkpoint folder -> (newest step when this process opened it, the folder, how to find that).
_newest: dict[str, tuple[int, os.PathLike, Callable]] = {}


class UserError(ValueError):
    """States what was given, what was expected and which field to change; no traceback."""

    code = USER_ERROR


class Unavailable(UserError):
    """The same command may succeed later: a lock, server or other process blocks it now."""

    code = FAILURE


def choose(field: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`; if absent, raises UserError with the known names and the closest match."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise UserError(f'{field}={name!r} is not known{hint} Known: {", ".join(table)}')


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def record_progress() -> None:
    """Records that work other than a checkpoint was saved and need not be repeated."""
    global _progress
    _progress = True


def watch_checkpoints(folder: os.PathLike, newest: Callable[[os.PathLike], int]) -> None:
    """Counts checkpoints that appear in this folder from now on as progress; `newest` returns the
    newest step there, or -1.
    """
    _newest.setdefault(str(folder), (_last(folder, newest), folder, newest))


def _last(folder: os.PathLike, newest: Callable[[os.PathLike], int]) -> int:
    try:
        return newest(folder)
    except (OSError, UserError):
        return -1


def failure_code() -> int:
    """The exit code after a crash or the loss of another process."""

    def look() -> None:
        if any(_last(folder, newest) > step for step, folder, newest in list(_newest.values())):
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


def exit_within(seconds: float, code: int) -> None:
    """Exits after so many seconds if threads of libraries still keep this process alive by then."""
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()
