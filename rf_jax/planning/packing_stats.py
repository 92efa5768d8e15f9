"""How well a packing plan fills its rows, and which capacities suit its samples."""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from rf_jax.data import layout
from rf_jax.data.packing import bins
from rf_jax.data.packing.plan import Plan


@dataclass(frozen=True)
class Measured:
    """Statistics of consecutive windows. `fill`: share of each capacity in use (`layout.SIZES`)."""

    examples: int
    steps: int
    fill: dict[str, float]
    row_fill: float  # over the tokens of all four streams
    carried: int  # examples that did not fit into their window and moved to the next
    left_out: int  # did not fit there either
    seconds: float  # CPU time


def measure(plan: Plan, examples: int) -> Measured:
    """Plans the first windows with at least `examples` examples in total."""
    began = time.process_time()
    number = -(-examples // plan.examples_per_window)
    room, carried, left_out = np.zeros(len(plan.capacity), np.int64), 0, 0
    for each in range(number):
        window = plan.window(each)
        room += window.room
        carried += len(window.left_over[0])
        left_out += window.left_out
    steps = number * plan.steps_per_window
    holds = steps * plan.batch_size * plan.capacity
    used = holds - room
    return Measured(
        number * plan.examples_per_window,
        steps,
        {name: u / h for name, u, h in zip(layout.SIZES, used, holds) if h},
        used[:4].sum() / holds[:4].sum(),
        carried,
        left_out,
        time.process_time() - began,
    )


# Capacities to try, in percent of the mean demand of each stream: if one stream has no room for the
# last example of a row, the room left in the others is wasted too.
_LEANS = tuple(itertools.product((100, 103, 106), (100, 101, 103), (100,), (100,)))


def recommended(plan: Plan, tokens: int, group: int = 4) -> tuple[np.ndarray, float]:
    """(capacities that suit the examples of a window at `tokens` per row, row fill with them).

    `group`: patches stored together; the pixel capacity is a multiple of it.
    """
    sizes = plan.sizes(plan.mixture.window(0, plan.examples_per_task))

    def fill(capacity) -> float:
        rows = bins.fewest_rows(sizes, capacity)
        return float(sizes[:, :4].sum() / (rows * capacity[:4].sum()))

    tried = [bins.recommended_capacity(sizes, tokens, lean, group) for lean in _LEANS]
    filled = [fill(capacity) for capacity in tried]
    best = int(np.argmax(filled))
    return tried[best], filled[best]


def lines(plan: Plan, examples: int, group: int = 4) -> list[str]:
    """The report on a plan, as lines of text; `group` as in `recommended`."""
    measured = measure(plan, examples)
    report = [
        f'examples planned       {measured.examples:12,d}',
        f'CPU seconds to plan    {measured.seconds:12.1f}',
        f'steps                  {measured.steps:12,d}',
        f'steps per window       {plan.steps_per_window:12,d}',
        f'steps per epoch        {plan.steps_per_epoch:12,d}',
        f'row fill               {measured.row_fill:12.1%}',
    ]
    report += [f'  {name:20} {value:12.1%}' for name, value in measured.fill.items()]
    report += [
        f'moved to next window   {measured.carried / measured.examples:12.3%}',
        f'left out               {measured.left_out / measured.examples:12.3%}',
    ]
    capacity, fill = recommended(plan, int(plan.capacity[:4].sum()), group)
    if fill < measured.row_fill + 0.01:
        return report
    return [*report, f'row fill would be {fill:.1%} with', *flags(capacity)]


def flags(capacity: np.ndarray) -> list[str]:
    """Capacities as command-line flags."""
    return [
        f'  --config.data.capacity.{name}={value}' for name, value in zip(layout.SIZES, capacity)
    ]
