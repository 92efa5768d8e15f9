"""Which window a step belongs to, and what the window holds, also when weights change at a step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A window. `starts`, `sizes`: for each task, the position of its first example in the order of
    the task, and how many there are.
    """

    number: int
    first_step: int
    steps: int
    starts: Mapping[str, int]
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class Phase:
    """From `first_step` on, windows of `steps` steps with `sizes` examples of each task."""

    first_step: int
    steps: int
    sizes: Mapping[str, int]


class Timeline:
    """Windows follow each other without gaps. The last window of a phase ends with the phase: it
    has fewer steps, and fewer examples in proportion. Positions continue from phase to phase, so no
    example of an epoch is skipped or repeated.
    """

    def __init__(self, tasks: Sequence[str]):
        self._phases: list[Phase] = []
        self._tasks = tuple(tasks)
        self._first: list[int] = []  # window of each phase
        self._starts: list[dict[str, int]] = []

    def add(self, phase: Phase) -> None:
        """Adds a phase after the others."""
        self._first.append(self._windows_until(phase.first_step))
        self._starts.append(self.positions(phase.first_step))
        self._phases.append(phase)

    def positions(self, step: int) -> dict[str, int]:
        """Examples of each task in all windows that begin before the step."""
        number = self._windows_until(step)
        if not number:
            return dict.fromkeys(self._tasks, 0)
        last = self._span(len(self._phases) - 1, number - 1, step)
        return {task: last.starts[task] + last.sizes[task] for task in self._tasks}

    def at(self, step: int) -> Span:
        """The window of a step."""
        phase = sum(each.first_step <= step for each in self._phases) - 1
        ahead = (step - self._phases[phase].first_step) // self._phases[phase].steps
        return self._span(phase, self._first[phase] + ahead, self._end(phase))

    def window(self, number: int) -> Span:
        """Window `number`."""
        phase = sum(first <= number for first in self._first) - 1
        return self._span(phase, number, self._end(phase))

    def _end(self, phase: int) -> int | None:
        return self._phases[phase + 1].first_step if phase + 1 < len(self._phases) else None

    def _windows_until(self, step: int) -> int:
        """Windows that begin before the step, which is in the last phase or ends it."""
        if not self._phases:
            return 0
        last = self._phases[-1]
        return self._first[-1] - (last.first_step - step) // last.steps

    def _span(self, phase: int, number: int, end: int | None) -> Span:
        of, ahead = self._phases[phase], number - self._first[phase]
        first = of.first_step + ahead * of.steps
        steps = of.steps if end is None else min(of.steps, end - first)
        sizes = {task: of.sizes.get(task, 0) for task in self._tasks}
        starts = {task: self._starts[phase][task] + ahead * sizes[task] for task in self._tasks}
        if steps < of.steps:
            sizes = {task: size * steps // of.steps for task, size in sizes.items()}
        return Span(number, first, steps, starts, sizes)
