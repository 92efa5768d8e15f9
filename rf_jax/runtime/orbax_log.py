"""Keeps the output of Orbax and TensorStore out of the log of a run.

Orbax logs about twenty lines per save. When a save fails, each of its threads logs a traceback of
the error that is raised anyway, and TensorStore prints another for every array still being written:
thousands of lines for a full disk. `runtime.checkpoint` logs it in one.
"""

import os
import sys
import warnings
from logging import CRITICAL, ERROR, INFO, LogRecord, getLogger

from absl import logging


def quiet() -> None:
    """Installs the filters for the whole process."""
    logging.get_absl_logger().addFilter(_keep)
    # Only Orbax uses asyncio here. After the first error it leaves behind tasks and futures whose
    # exceptions are never retrieved, and coroutines that are never awaited.
    getLogger('asyncio').setLevel(CRITICAL)
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    previous = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
        if unraisable.object is not None or not late:
            previous(unraisable)

    sys.unraisablehook = hook


def _keep(record: LogRecord) -> bool:
    """Keeps only warnings of Orbax, without tracebacks; its errors are raised anyway."""
    if not _of_orbax(record.pathname):
        return True
    if not INFO < record.levelno < ERROR:
        return False
    record.exc_info = None
    record.msg, record.args = record.getMessage().strip().partition('\n')[0], ()
    return True


def _of_orbax(text: str) -> bool:
    return f'{os.sep}orbax{os.sep}' in text
