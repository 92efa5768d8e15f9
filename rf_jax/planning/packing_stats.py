"""How well a packing plan fills its rows, and which capacities suit its samples: those of a data
set, or, without the data, sizes like those of COCO and LAION.

Of those only the shapes of the distributions are imitated: COCO has longest sides of 640 px and
captions of about ten words; LAION has sides from 200 px to thousands, any aspect ratio and captions
with a long tail. Every size is a function of (seed, task, index, epoch).
"""

import itertools
import time
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import fitting, layout
from rf_jax.data.hashing import uniform
from rf_jax.data.layout import SIZES
from rf_jax.data.packing import bins
from rf_jax.data.packing.plan import Plan
from rf_jax.data.spans import pool_of
from rf_jax.runtime.errors import require
from rf_jax.runtime.rng import fold

PLAIN = 3  # tokens around a question and its answer, without names of roles
_QUESTION = (5.0, 0.25)  # tokens of a question: median, spread of its logarithm


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
    room, rows = np.zeros(len(plan.capacity), np.int64), 0
    planned = carried = left_out = before = 0
    for number in itertools.count():
        window = plan.window(number)
        room += window.room
        rows += len(window.starts) - 1  # windows differ where `data.weights` changes
        planned += len(window.examples) - before
        before = len(window.left_over[0])  # which the next window has as well
        carried += before
        left_out += window.left_out
        if planned >= examples:
            break
    holds = rows * plan.capacity
    used = holds - room
    return Measured(
        planned,
        rows // plan.batch_size,
        {name: u / h for name, u, h in zip(layout.SIZES, used, holds) if h},
        used[:4].sum() / holds[:4].sum(),
        carried,
        left_out,
        time.process_time() - began,
    )


# Capacities to try, in percent of the mean demand of each stream: if one stream has no room for the
# last example of a row, the room left in the others is wasted too.
_LEANS = tuple(itertools.product((100, 103, 106), (100, 101, 103), (100,), (100,)))


# Rows that are filled to compare capacities, about: all the short rows of a window take minutes.
_ROWS = 1024


def recommended(plan: Plan, tokens: int, group: int = 4) -> tuple[np.ndarray, float]:
    """(capacities that suit the examples of a window at `tokens` per row, row fill with them).

    `group`: patches stored together; the pixel capacity is a multiple of it.
    """
    sizes = plan.sizes(plan.mixture.window(0, plan.examples_per_task))
    rows = int(sizes[:, :4].sum()) // tokens
    some = sizes[: len(sizes) * _ROWS // max(_ROWS, rows)]  # they are in random order

    def fill(capacity) -> float:
        rows = bins.fewest_rows(some, capacity)
        return float(some[:, :4].sum() / (rows * capacity[:4].sum()))

    tried = [bins.recommended_capacity(sizes, tokens, lean, group) for lean in _LEANS]
    filled = [fill(capacity) for capacity in tried]
    best = int(np.argmax(filled))
    return tried[best], filled[best]


def lines(plan: Plan, examples: int, group: int = 4) -> list[str]:
    """The report on a plan, as lines of text; `group` as in `recommended`, 0: without better
    capacities.
    """
    measured = measure(plan, examples)
    report = [
        f'examples planned       {measured.examples:12,d}',
        f'CPU seconds to plan    {measured.seconds:12.1f}',
        f'steps                  {measured.steps:12,d}',
        f'CPU ms per step        {1e3 * measured.seconds / measured.steps:12.1f}',
        f'steps per window       {plan.steps_per_window:12,d}',
        f'steps per epoch        {plan.steps_per_epoch:12,d}',
        f'row fill               {measured.row_fill:12.1%}',
    ]
    report += [f'  {name:20} {value:12.1%}' for name, value in measured.fill.items()]
    report += [
        f'moved to next window   {measured.carried / measured.examples:12.3%}',
        f'left out               {measured.left_out / measured.examples:12.3%}',
    ]
    if not group:
        return report
    capacity, fill = recommended(plan, int(plan.capacity[:4].sum()), group)
    if fill < measured.row_fill + 0.01:
        return report
    return [*report, f'row fill would be {fill:.1%} with', *flags(capacity)]


def flags(capacity: np.ndarray) -> list[str]:
    """Capacities as command-line flags."""
    return [
        f'  --config.data.capacity.{name}={value}' for name, value in zip(layout.SIZES, capacity)
    ]


class SyntheticSizes:
    """`sizes(task, index, epoch)` of a data set of `kind`, resized and dropped as in `config`.

    `around`: tokens around a question and its answer (`ChatFormat.question_and_answer`). Raises
    UserError at construction for an unknown pool or kind of representation.
    """

    def __init__(self, kind: str, config: ConfigDict, around: int = PLAIN):
        self._kind, self._around = KINDS[kind], around
        self._data, self._seed, self._pool = config.data, config.seed, pool_of(config)

    def sizes(self, task: str, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """int64[S, 6], columns as `layout.SIZES`, for sample indices and epochs int64[S]."""
        require(
            task in ('text_to_image', 'image_to_text', 'text_only'),
            f'--distribution has no examples of {task}: give data.sources that have some, or '
            f'--config.data.tasks.{task}=0',
        )
        data = self._data
        samples = fold(self._seed, 'sample'), index
        draws = fold(self._seed, 'draw', task), index, epoch
        sizes = dict.fromkeys(SIZES, np.zeros(len(index), np.int64))
        if task == 'text_only':
            # A chunk of a document has its begin token and all tokens but the last.
            sizes['text'] = np.minimum(self._caption(draws) + 1, data.max_text_tokens)
            return np.stack([sizes[name] for name in SIZES], 1)
        height, width = self._kind.image(*(uniform(*samples, draw=i) for i in range(4)))
        chance = uniform(*draws, draw=10)
        longest = fitting.picks(chance, data.sizes)
        patches = fitting.patches(height, width, longest, data, self._pool)
        if task == 'image_to_text':
            has_question = uniform(*draws, draw=11) < data.question_prob
            question = np.where(has_question, tokens_of(_QUESTION, draws, 12), 0)
            room = data.max_text_tokens - self._around
            question = np.minimum(question, min(data.max_text_tokens // 2, room - 1))
            answer = np.minimum(self._caption(draws), room - question)
            sizes |= {'text': question + answer + self._around, 'vision': patches // 4}
            sizes['vision_images'] = np.ones_like(patches)
        else:
            prompt = np.minimum(self._caption(draws), data.max_text_tokens - 2) + 2
            dropped = uniform(*draws, draw=14) < data.text_dropout
            dropped |= uniform(*draws, draw=15) < data.joint_dropout
            sizes |= {'text': np.where(dropped, 0, prompt), 'pixels': patches}
            if self._pool:
                sizes['representation'] = patches // self._pool**2 + 1
            sizes['pixel_images'] = np.ones_like(patches)
        return np.stack([sizes[name] for name in SIZES], 1)

    def _caption(self, draws) -> np.ndarray:
        return tokens_of(self._kind.caption, draws, 16)


class _Coco:
    caption = (13.0, 0.2)  # ten or eleven words

    @staticmethod
    def image(shape, other, turned, _) -> tuple[np.ndarray, np.ndarray]:
        """Most are 640 x 480 or 640 x 427, some of any shape; a quarter is in portrait format."""
        short = np.where(shape < 0.4, 480, np.where(shape < 0.75, 427, np.floor(320 + 320 * other)))
        upright = turned < 0.25
        return np.where(upright, 640, short), np.where(upright, short, 640)


class _Laion:
    caption = (14.0, 0.7)

    @staticmethod
    def image(shape, other, size, more) -> tuple[np.ndarray, np.ndarray]:
        """Geometric means around 500 px with a long tail; a third is square, the rest any shape."""
        normal, ratio = _normal(size, more), _normal(shape, other)
        mean = np.clip(500 * np.exp(0.6 * normal), 200, 6000)
        aspect = np.where(other < 0.33, 1.0, np.exp(np.clip(0.4 * ratio, -1.6, 1.6)))
        return np.rint(mean * aspect), np.rint(mean / aspect)


KINDS = {'coco': _Coco, 'laion': _Laion}


def _normal(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Standard normal from two uniforms (Box-Muller)."""
    return np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * two)


def tokens_of(distribution: tuple[float, float], draws, number: int) -> np.ndarray:
    """int64[S]: log-normal lengths of (median, spread of the logarithm) from two draws."""
    median, spread = distribution
    normal = _normal(uniform(*draws, draw=number), uniform(*draws, draw=number + 1))
    return np.maximum(np.rint(median * np.exp(spread * normal)), 1).astype(np.int64)
