"""How well a plan fills its rows, and which capacities would suit its samples."""

import itertools
import time
from dataclasses import dataclass

import numpy as np

from rf_jax.data import layout
from rf_jax.data.packing import bins
from rf_jax.data.packing.plan import Plan


@dataclass(frozen=True)
class Measured:
    """Of some windows in a row. `fill`: share of each capacity in use, as `layout.SIZES`."""

    draws: int
    steps: int
    fill: dict[str, float]
    row_fill: float  # of the tokens of all four streams
    carried: int  # draws that had no room in their own window and stand in the next
    left_out: int  # had no room there either
    seconds: float  # of the processor: other work on the machine does not count


def measure(plan: Plan, draws: int) -> Measured:
    """Plans the first windows that hold at least `draws` draws."""
    began = time.process_time()
    number = -(-draws // plan.examples_per_window)
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


# Percent of the mean demand of text and vision that are tried: where a stream just lacks the room
# for a row's last sample, that of the others stays empty too.
_LEANS = tuple(itertools.product((100, 103, 106), (100, 101, 103), (100,), (100,)))


def recommended(plan: Plan, tokens: int, group: int = 4) -> tuple[np.ndarray, float]:
    """(capacities that suit a window's samples at so many tokens a row, row fill with them).

    `group`: patches that are stored together, of which a row's pixels are a multiple.
    """
    sizes = plan.sizes(plan.mixture.window(0, plan.examples_per_task))

    def fill(capacity) -> float:
        rows = bins.fewest_rows(sizes, capacity)
        return float(sizes[:, :4].sum() / (rows * capacity[:4].sum()))

    tried = [bins.recommended_capacity(sizes, tokens, lean, group) for lean in _LEANS]
    filled = [fill(capacity) for capacity in tried]
    best = int(np.argmax(filled))
    return tried[best], filled[best]


def lines(plan: Plan, draws: int, group: int = 4) -> list[str]:
    """What a person wants to know of a plan; `group` as in `recommended`."""
    found = measure(plan, draws)
    told = [
        f'draws planned          {found.draws:12,d}',
        f'seconds, to plan       {found.seconds:12.1f}',
        f'steps                  {found.steps:12,d}',
        f'steps of a window      {plan.steps_per_window:12,d}',
        f'steps of an epoch      {plan.steps_per_epoch:12,d}',
        f'row fill               {found.row_fill:12.1%}',
    ]
    told += [f'  {name:20} {value:12.1%}' for name, value in found.fill.items()]
    told += [
        f'in the next window     {found.carried / found.draws:12.3%}',
        f'left out               {found.left_out / found.draws:12.3%}',
    ]
    capacity, fill = recommended(plan, int(plan.capacity[:4].sum()), group)
    if fill < found.row_fill + 0.01:
        return told
    return [*told, f'rows would be {fill:.1%} full with', *flags(capacity)]


def flags(capacity: np.ndarray) -> list[str]:
    """As one gives them to a command."""
    return [
        f'  --config.data.capacity.{name}={value}' for name, value in zip(layout.SIZES, capacity)
    ]
