"""Where the time of a run goes, over all its attempts: `workdir/goodput.json` and a table.

Goodput is the time spent in steps that count, divided by all time since the run first started.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator

from absl import logging

from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import Unavailable, UserError

# In table order. Time that belongs to no other phase counts as steps.
PHASES = {
    'steps': 'steps that count',
    'start': 'building, initialising or restoring',
    'compile': 'first step, with compilation',
    'data': 'waiting for batches',
    'rollout': 'rollouts: sampling and rewards',
    'checkpoint': 'waiting for checkpoints',
    'evaluation': 'samples and evaluation',
    'again': 'steps repeated after a restart',
    'idle': 'between attempts, from the last record of one to the start of the next',
}
DERIVED = ('steps', 'again', 'idle')
EVERY = 60.0  # seconds between writes to a bucket


class Goodput:
    """Times the phases of this attempt and adds those of earlier attempts from the workdir."""

    def __init__(self, workdir: str | os.PathLike, clock: Callable[[], float] = time.time):
        """Starts an attempt now; `clock` returns seconds since 1970."""
        folder = paths.anywhere(workdir, '--workdir')
        self._path, self._clock = folder / 'goodput.json', clock
        self._began = clock()
        self._seconds = {name: 0.0 for name in PHASES if name not in DERIVED}
        self._inside = False
        self._attempts: list[dict] = []
        self._start = self._step = 0
        self._lost = False
        self._written = float('-inf')

    def resumed(self, step: int) -> None:
        """Ends the start phase at `step`. Reads the records of earlier attempts."""
        self._seconds['start'] = self._clock() - self._began - sum(self._seconds.values())
        self._start = self._step = step
        try:
            found = json.loads(storage.read(self._path))['attempts']
            self._attempts = [each for each in found if _is_record(each)]
        except Unavailable as error:
            self._lost = True  # the records of earlier attempts are worth more than this one's
            logging.warning('%s is left as it is by this attempt: %s', self._path, error)
        except (OSError, ValueError, KeyError, TypeError):
            self._attempts = []  # the first attempt, or not our file
        end = step  # a later attempt repeats the steps beyond
        for attempt in reversed(self._attempts):
            attempt['kept'] = max(min(attempt['last_step'], end), attempt['first_step'])
            end = min(end, attempt['first_step'])

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attributes the time inside the block to a phase; nested phases count as the outer one."""
        if self._inside or name == 'steps':
            yield
            return
        since, self._inside = self._clock(), True
        try:
            yield
        finally:
            self._inside = False
            self._seconds[name] += self._clock() - since

    def _record(self) -> dict:
        """This attempt as an entry of the file."""
        now = self._clock()
        steps = max(now - self._began - sum(self._seconds.values()), 0.0)
        return {
            'began': round(self._began, 3),
            'seen': round(now, 3),
            'first_step': self._start,
            'last_step': self._step,
            'seconds': {k: round(v, 3) for k, v in {'steps': steps, **self._seconds}.items()},
        }

    def totals(self) -> dict[str, float]:
        """Seconds of each phase over all attempts; they add up to all time since the first start.

        Repeated steps are the share of an attempt's steps beyond the checkpoint that the next
        attempt resumed from.
        """
        attempts = [*self._attempts, self._record()]
        total = dict.fromkeys(PHASES, 0.0)
        for attempt in attempts:
            for name, seconds in attempt['seconds'].items():
                total[name] = total.get(name, 0.0) + seconds
            done = attempt['last_step'] - attempt['first_step']
            lost = attempt['last_step'] - attempt.get('kept', attempt['last_step'])
            again = attempt['seconds']['steps'] * lost / done if done else 0.0
            total['steps'] -= again
            total['again'] += again
        for before, after in itertools.pairwise(attempts):
            total['idle'] += max(after['began'] - before['seen'], 0.0)
        return total

    def share(self) -> float:
        """Goodput in [0, 1]."""
        total = self.totals()
        return total['steps'] / max(sum(total.values()), 1e-9)

    def save(self, step: int, write: bool = True, final: bool = True) -> None:
        """Records that `step` is done and writes the file; a full disk only logs a warning.

        In a bucket the file is written at most once in `EVERY` seconds unless `final`: with a
        checkpoint, and at the end.
        """
        self._step = step
        if not write or self._lost:
            return
        if not (final or storage.is_local(self._path) or self._clock() - self._written >= EVERY):
            return
        self._written = self._clock()
        record = {
            'goodput': round(self.share(), 4),
            'seconds': {name: round(value, 3) for name, value in self.totals().items()},
            'attempts': [*self._attempts, self._record()],
        }
        try:
            storage.write(self._path, json.dumps(record, indent=1).encode())
        except (OSError, UserError) as error:
            logging.warning('%s cannot be written: %s', self._path, error)

    def table(self) -> str:
        """The phases of all attempts, one per line."""
        total = self.totals()
        seconds = max(sum(total.values()), 1e-9)
        attempts = len(self._attempts) + 1
        lines = [f'goodput {self.share():.1%} of {seconds:,.1f} s, {attempts} attempt(s)']
        for name, label in PHASES.items():
            lines.append(f'  {label:72s}{total[name]:12,.1f} s {total[name] / seconds:7.1%}')
        return '\n'.join(lines)


def _is_record(attempt: object) -> bool:
    """Whether an entry of the file is as `Goodput._record` makes it, not of another version."""
    match attempt:
        case {
            'began': float() | int(),
            'seen': float() | int(),
            'first_step': int(),
            'last_step': int(),
            'seconds': {'steps': _} as seconds,
        }:
            return all(isinstance(value, float | int) for value in seconds.values())
    return False
