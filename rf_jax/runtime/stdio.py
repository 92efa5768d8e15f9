"""Makes stdout and stderr robust: closed, without a reader, or ASCII only, they never end a run."""

import contextlib
import errno
import io
import os
import sys
from logging import StreamHandler, getLogger

from absl import logging

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # `| head -1` has exited; the terminal was closed


class _Pipe(io.FileIO):
    """A file descriptor that is redirected to /dev/null once its reader is gone."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            open_null(self.fileno())
            return len(data)


def open_null(number: int) -> None:
    """Redirects a file descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def prepare() -> None:
    """Replaces sys.stdout and sys.stderr; call before anything is printed.

    A descriptor that the shell closed (`>&-`) is redirected to /dev/null. Otherwise the next file
    to be opened would get its number, and output would be printed into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            open_null(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)
    for handler in (*getLogger().handlers, logging.get_absl_handler().python_handler):
        if isinstance(handler, StreamHandler) and handler.stream in before:
            handler.setStream(sys.stderr)


def _tolerant(stream: io.TextIOWrapper | None, number: int) -> io.TextIOBase:
    if stream is None:  # was closed
        return open(os.devnull, 'w', encoding='utf-8')
    with contextlib.suppress(OSError):
        stream.flush()
    pipe = _Pipe(number, 'w', closefd=False)
    unbuffered = stream.write_through  # PYTHONUNBUFFERED=1, as in most containers
    return io.TextIOWrapper(
        pipe if unbuffered else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors='backslashreplace',  # an ASCII terminal shows ñ as \xf1
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )
