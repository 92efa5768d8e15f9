"""A trace of some steps, for XProf, TensorBoard or Perfetto."""

import contextlib
from pathlib import Path
from typing import Any

import jax
from absl import logging

from rf_jax.runtime.errors import UserError


def parse(text: str) -> tuple[int, int] | None:
    """(first, last) of 'first:last'; None of ''. Raises UserError for anything else."""
    if not text:
        return None
    first, _, last = text.partition(':')
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f'--profile={text}: expected first:last step, counted from 1, as in 10:15')
    return int(first), int(last)


class Profile:
    """Traces steps first .. last of the first process into a folder; nothing if they are None.

    with Profile(folder, (10, 15)) as profile:
        for number in ...:
            with profile.step(number): ...
    """

    def __init__(self, folder: Path, steps: tuple[int, int] | None):
        # One process is enough to read, and two on one machine would write the same files.
        self._folder, self._steps = folder, steps if jax.process_index() == 0 else None
        self._running = self._seen = False
        self._last: Any = None  # what the newest step gives

    def __enter__(self) -> 'Profile':
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()
        if self._steps and not self._seen:
            logging.warning('None of the steps %d to %d was run: no profile', *self._steps)

    @contextlib.contextmanager
    def step(self, number: int):
        """Around the dispatch of a step. The trace ends when the step after the last begins."""
        if self._steps is None:
            yield
            return
        first, last = self._steps
        if self._running and number > last:
            self._stop()
        if not self._running and first <= number <= last:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._running = self._seen = True
            logging.info('Profiling steps %d to %d', number, last)
        with jax.profiler.StepTraceAnnotation('train', step_num=number):
            yield

    def gives(self, values: Any) -> None:
        """Takes what the step just dispatched will give: a trace ends when it is there."""
        self._last = values

    def _stop(self) -> None:
        if not self._running:
            return
        self._running = False
        jax.block_until_ready(self._last)
        jax.profiler.stop_trace()
        logging.info(
            'Profile in %s: `tensorboard --logdir=%s` or `xprof %s`; its perfetto_trace.json.gz '
            'opens in https://ui.perfetto.dev',
            *(self._folder,) * 3,
        )
