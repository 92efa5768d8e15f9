"""What Orbax and TensorStore print by themselves, kept out of the log of a run.

Orbax logs some twenty lines a save. When a save fails, each of its threads logs a traceback of the
error that is also raised, and TensorStore prints another for every array that was still being
written when Orbax had given up: thousands of lines for a full disk. `runtime.checkpoint` says it in
one.
"""

import os
import sys
import warnings
from logging import CRITICAL, ERROR, INFO, LogRecord, getLogger

from absl import logging


def condense() -> None:
    """For the whole process."""
    logging.get_absl_logger().addFilter(_keep)
    # Orbax alone uses asyncio here. After the first error it leaves tasks and futures behind whose
    # exceptions nobody retrieves, and coroutines that nobody awaits.
    getLogger('asyncio').setLevel(CRITICAL)
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    usual = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
        if unraisable.object is not None or not late:
            usual(unraisable)

    sys.unraisablehook = hook


def _keep(record: LogRecord) -> bool:
    """Of Orbax only warnings, without their tracebacks; its errors are raised as well."""
    if not _of_orbax(record.pathname):
        return True
    if not INFO < record.levelno < ERROR:
        return False
    record.exc_info = None
    record.msg, record.args = record.getMessage().strip().partition('\n')[0], ()
    return True


def _of_orbax(text: str) -> bool:
    return f'{os.sep}orbax{os.sep}' in text
