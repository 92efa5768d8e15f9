"""Files that grow during a run: the lines of metrics.jsonl and TensorBoard's events.

On a disk they are appended to. A bucket does not allow this: there they consist of parts,
`metrics/STEP.jsonl` and one file of events for each, named by their first step. The newest part is
rewritten as it grows, at most once in `EVERY` seconds and with every checkpoint; at `PART` bytes a
new one begins. So a step costs the same however long the run is, and a killed run loses no line of
a step that it resumes.
"""

import contextlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tensorboardX.proto.event_pb2 import Event

from rf_jax.runtime import events, paths, storage

EVERY = 60.0  # seconds between writes of a part
PART = 1 << 20  # bytes of lines and events in a part, at least


class MetricFiles(Protocol):
    """Raises OSError, or UserError for a bucket, if something cannot be written."""

    def write(self, step: int, event: Event, line: bytes) -> None:
        """Adds a record to TensorBoard's events and a line, unless it is b'', to metrics.jsonl."""

    def flush(self) -> None:
        """What was written before is on the disk or in the bucket when this returns."""

    def close(self) -> None:
        """Writes what is left."""


def opened(
    workdir: paths.AnyPath, start_step: int, check: Callable[[], None] = lambda: None
) -> MetricFiles:
    """The files of a run that resumes after `start_step`; what an earlier attempt wrote of later
    steps is dropped. `check` raises before a write to a bucket that another process owns now.
    """
    if storage.is_local(workdir):
        return OnDisk(workdir, start_step)
    return InBucket(workdir, start_step, check)


class OnDisk:
    """`metrics.jsonl` and `tensorboard/`, appended to."""

    def __init__(self, workdir: Path, start_step: int):
        lines, boards = Path(workdir) / 'metrics.jsonl', Path(workdir) / 'tensorboard'
        boards.mkdir(parents=True, exist_ok=True)
        if lines.exists():
            storage.write(lines, kept_lines(lines.read_bytes(), start_step))
        self._lines = lines.open('ab')
        self._events = events.writer(boards)

    def write(self, step: int, event: Event, line: bytes) -> None:
        del step
        self._lines.write(line)
        self._lines.flush()
        self._events.write_event(event)
        self._events.flush()

    def flush(self) -> None:
        """Every write is flushed."""

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._events.close)
            stack.callback(self._lines.close)


class InBucket:
    """`metrics/STEP.jsonl` and `tensorboard/`, in parts."""

    def __init__(
        self,
        workdir: paths.AnyPath,
        start_step: int,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._workdir, self._check, self._clock = workdir, check, clock
        self._local = Path(tempfile.mkdtemp(prefix='rf_jax_events_'))
        self._drop_after(start_step)
        self._begin()

    def write(self, step: int, event: Event, line: bytes) -> None:
        if line and not self._lines:
            self._name = f'{step:08d}.jsonl'
        self._lines += line
        self._events.write_event(event)
        self._changed = True
        if self._clock() - self._written >= EVERY:
            self.flush()

    def flush(self) -> None:
        if not self._changed:
            return
        try:
            self._check()
            self._events.flush()
            (written,) = self._local.iterdir()
            data = written.read_bytes()
            storage.write(self._workdir / 'tensorboard' / written.name, data)
            if self._lines:
                storage.write(self._workdir / 'metrics' / self._name, bytes(self._lines))
        finally:  # a failure may have taken minutes, and the next try comes after a pause
            self._written = self._clock()
        self._changed = False
        if len(self._lines) + len(data) >= PART:
            self._events.close()
            written.unlink()
            self._begin()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._events.close()
            shutil.rmtree(self._local, ignore_errors=True)

    def _begin(self) -> None:
        self._lines, self._name, self._changed = bytearray(), '', False
        self._written = self._clock()
        self._events = events.writer(self._local)

    def _drop_after(self, start_step: int) -> None:
        names = storage.names(self._workdir / 'metrics')
        parts = [name for name in names if re.fullmatch(r'\d+\.jsonl', name)]
        later = [name for name in parts if int(name.partition('.')[0]) > start_step]
        for name in later:
            storage.delete(self._workdir / 'metrics' / name)
        for name in parts[: len(parts) - len(later)][-1:]:  # the others end before it begins
            part = self._workdir / 'metrics' / name
            storage.write(part, kept_lines(storage.read(part), start_step))


def kept_lines(data: bytes, start_step: int) -> bytes:
    """The JSON lines, except incomplete ones and those of later steps."""
    kept = []
    for line in data.splitlines():
        try:
            if json.loads(line)['step'] <= start_step:
                kept.append(line + b'\n')
        except (ValueError, KeyError, TypeError):
            continue  # incomplete: the process was killed
    return b''.join(kept)
