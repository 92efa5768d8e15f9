"""Profiler traces of chosen steps, for XProf, TensorBoard or Perfetto."""

import contextlib
import shutil
import tempfile
from typing import Any

import jax
from absl import logging

from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import UserError


def parse(text: str) -> tuple[int, int] | None:
    """Parses 'first:last' into (first, last), '' into None; otherwise raises UserError."""
    if not text:
        return None
    first, _, last = text.partition(':')
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f'--profile={text}: expected first:last, steps counted from 1, as in 10:15')
    return int(first), int(last)


class Profile:
    """Traces steps first .. last of process 0 into a folder; does nothing if `steps` is None.

    with Profile(folder, (10, 15)) as profile:
        for number in ...:
            with profile.step(number): ...
    """

    def __init__(self, folder: paths.AnyPath, steps: tuple[int, int] | None):
        # One process is enough, and two on one machine would write the same files.
        self._folder, self._steps = folder, steps if jax.process_index() == 0 else None
        self._running = self._seen = False
        self._local: Any = folder  # on a disk, where the profiler writes
        self._last: Any = None  # outputs of the newest step

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()
        if self._steps and not self._seen:
            logging.warning('No profile: none of the steps %d to %d ran', *self._steps)

    @contextlib.contextmanager
    def step(self, number: int):
        """Wraps the dispatch of a step. The trace ends when the step after `last` begins."""
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._running and number > last:
            self._stop()
        if not self._running and first <= number <= last:
            if not storage.is_local(self._folder):
                self._local = tempfile.mkdtemp(prefix='rf_jax_')
            jax.profiler.start_trace(self._local, create_perfetto_trace=True)
            self._running = self._seen = True
            logging.info('Profiling steps %d to %d', number, last)
        with jax.profiler.StepTraceAnnotation('train', step_num=number):
            yield

    def wait_for(self, values: Any) -> None:
        """Sets the outputs of the step just dispatched, which the trace waits for at its end."""
        self._last = values

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        jax.block_until_ready(self._last)
        jax.profiler.stop_trace()
        if self._local is not self._folder:
            try:
                storage.copy(self._local, self._folder)
            except (OSError, UserError) as error:
                logging.warning('The profile stays in %s of this machine: %s', self._local, error)
                return
            shutil.rmtree(self._local, ignore_errors=True)
        logging.info(
            'Profile in %s: `tensorboard --logdir=%s` or `xprof %s`; its perfetto_trace.json.gz '
            'opens in https://ui.perfetto.dev',
            *(self._folder,) * 3,
        )
