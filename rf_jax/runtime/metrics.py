"""Logging of a run (JSON lines, TensorBoard, the progress line) and its stop signal."""

import contextlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging

from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event


class MetricWriter:
    """Writes metrics.jsonl (metrics/ in a bucket) and tensorboard/ of a workdir, in process 0 only.

    A full disk is logged once and does not stop the run.
    """

    def __init__(
        self,
        workdir: paths.AnyPath,
        start_step: int,
        check: Callable[[], None] = lambda: None,
    ):
        """
        Args:
          workdir: created if missing.
          start_step: steps done; records that an earlier attempt wrote of later steps are dropped.
          check: raises UserError once another process owns the workdir, in a bucket.
        """
        self._active = jax.process_index() == 0
        self._warned = False
        if not self._active:
            return
        from rf_jax.runtime import events, metric_files  # they may import torch: 2 s

        self._events = events
        self._files = metric_files.opened(workdir, start_step, check)
        self._write(events.start(start_step + 1))

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes a line {"step", "time" (seconds since 1970), name: number}; NaN and inf are null,
        and no points in TensorBoard.
        """
        if not self._active:
            return
        line = {'step': int(step), 'time': round(time.time(), 3)}
        numbers = {name: _number(value) for name, value in values.items()}
        finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
        line |= dict.fromkeys(numbers) | finite
        encoded = (json.dumps(line, allow_nan=False) + '\n').encode()
        self._write(self._events.scalars(step, finite), encoded)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Writes an image, uint8 [height, width, 3], to TensorBoard."""
        if self._active:
            self._write(self._events.image(step, name, image))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text (Markdown) to TensorBoard."""
        if self._active:
            self._write(self._events.text(step, name, text))

    def close(self) -> None:
        """Closes the files."""
        if self._active:
            self._active = False
            self._try(self._files.close)

    def flush(self) -> None:
        """Called with every checkpoint: a run that resumes there has the lines before it."""
        if self._active:
            self._try(self._files.flush)

    def _write(self, event: 'Event', line: bytes = b'') -> None:
        self._try(lambda: self._files.write(event.step, event, line))

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, UserError) as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logging.warning(
                'Metrics cannot be written: %s. Training continues without them.', error
            )
        self._warned = True


def _number(value: Any) -> int | float:
    value = np.asarray(value).item()
    return int(value) if isinstance(value, bool | int) else float(value)


class Progress:
    """Throughput and ETA of a run, leaving out the first step, which compiles."""

    def __init__(
        self, start_step: int, total_steps: int, clock: Callable[[], float] = time.monotonic
    ):
        self._start_step, self._total, self._clock = start_step, total_steps, clock
        self._started = self._since = clock()
        self._first: tuple[int, float] | None = None  # the first finished step and its time
        self._counts: dict[str, float] = {}

    def done(self, step: int, **counts: float) -> None:
        """Records a finished step; `counts` (samples, tokens, flops) are summed for the rates."""
        if self._first is None:
            self._since = self._clock()
            self._first = step, self._since
            return
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the time inside the block out of the rates: it is not training."""
        began = self._clock()
        yield
        self._since += self._clock() - began

    def rates(self) -> dict[str, float]:
        """{name_per_second: rate} since the last call; empty if there was no step."""
        now = self._clock()
        seconds, self._since = now - self._since, now
        counts, self._counts = self._counts, {}
        if seconds <= 0:
            return {}
        return {f'{name}_per_second': count / seconds for name, count in counts.items()}

    def line(self, step: int, metrics: Mapping[str, Any]) -> str:
        """The progress line.

        Args:
          step: steps done.
          metrics: shown if present: 'loss' and 'loss/<term>', 'samples_per_second',
            'tokens_per_second', 'mfu' (0 to 1) or else 'flops_per_second', 'fill' (0 to 1),
            'skipped' (steps). Others are not shown.
        """
        metrics = {name: _number(value) for name, value in metrics.items()}
        parts = [f'step {step}/{self._total}']
        parts += [
            f'{name.removeprefix("loss/")} {value:.4g}'
            for name, value in metrics.items()
            if name == 'loss' or name.startswith('loss/')
        ]
        formats = {
            'samples_per_second': lambda v: f'{_short(v)} samples/s',
            'tokens_per_second': lambda v: f'{_short(v)} tokens/s',
            'mfu': lambda v: f'MFU {v:.1%}',
            'flops_per_second': lambda v: f'{_short(v / 1e9)} GFLOP/s',
            'fill': lambda v: f'fill {v:.0%}',
            'skipped': lambda v: f'skipped {v:.0f}',
        }
        if 'mfu' in metrics:
            del formats['flops_per_second']
        parts += [show(metrics[name]) for name, show in formats.items() if name in metrics]
        now = self._clock()
        parts.append(f'elapsed {duration(now - self._started)}')
        first, at = self._first or (self._start_step, self._started)
        if step > first:
            parts.append(f'ETA {duration((self._total - step) * (now - at) / (step - first))}')
        return ' | '.join(parts)


def _short(value: float) -> str:
    """A number with about three digits: 0.123, 45.6, 789, 12.3k, 4.56M."""
    for unit in ('', 'k', 'M', 'G'):
        if abs(value) < 999.5:
            return f'{value:.3g}{unit}'
        value /= 1000
    return f'{value:.3g}T'


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as in 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second one has its usual effect.

    with StopSignal() as stop:
        while not stop.requested: ...

    Outside the main thread, where Python allows no handlers, signals do not set the flag.
    """

    def __init__(self):
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> 'StopSignal':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        self._restore()

    def _handle(self, number: int, frame: Any) -> None:
        del frame
        self.requested = True
        self._restore()  # the next signal gets its usual handler
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # no stderr, or no reader
            # os.write, because a handler may run in the middle of a print.
            line = f'\n{name}: stopping after this step; signal again to stop immediately.\n'
            os.write(2, line.encode())

    def _restore(self) -> None:
        while self._old:
            number, handler = self._old.popitem()
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def peak_memory_gb() -> float:
    """Peak memory so far in GB (10^9 bytes): of the fullest local device, else of this process."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [each.get('peak_bytes_in_use', 0) for each in stats if each]
    if any(peaks):
        return max(peaks) / 1e9
    return peak_process_gb()


def peak_process_gb() -> float:
    """Peak host memory of this process so far in GB (10^9 bytes), without device memory."""
    unit = 1 if sys.platform == 'darwin' else 1024  # Linux counts in units of 1024 bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
