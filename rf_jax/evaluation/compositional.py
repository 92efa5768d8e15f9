"""Compositional generation: draw prompts, judge the pictures, and how sure the rates are.

As GenEval (Ghosh et al. 2023): a picture is right or wrong, a category's score is the mean over
its pictures, the overall score the mean over categories.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rf_jax.data.claims import Claim
from rf_jax.data.keys import generator
from rf_jax.evaluation.identification import wilson
from rf_jax.evaluation.judge import accepts

OVERALL = 'overall'
_RESAMPLES = 2000


class Prompt(Protocol):
    """What to draw, what must hold of the picture, and the category it counts for."""

    category: str
    text: str
    claim: Claim


@dataclass(frozen=True)
class Rate:
    """Share of right pictures and its 95 % interval, in [0, 1], over so many of each."""

    rate: float
    low: float
    high: float
    prompts: int
    pictures: int


@dataclass(frozen=True)
class Mean:
    """Mean over `seeds` trainings and its 95 % interval; the interval is nan for one seed."""

    mean: float
    low: float
    high: float
    seeds: int


def draw(
    sampler, prompts: Sequence[Prompt], each: int = 4, seed: int = 0, size=None, options=None
) -> list[list[np.ndarray]]:
    """`each` pictures, uint8 [s, s, 3], of every prompt, by a `Sampler`.

    A prompt that comes again is drawn anew; `size` and `options` as `Sampler.request` and `draw`.
    """
    requests, before = [], Counter()
    for prompt in prompts:
        first = before[prompt.text]
        before[prompt.text] += each
        requests += [sampler.request(prompt.text, seed, first + i, size) for i in range(each)]
    pictures = sampler.draw(requests, options)
    return [pictures[i : i + each] for i in range(0, len(pictures), each)]


def judge(prompts: Sequence[Prompt], pictures: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """bool [prompts, each]: which pictures bear out the claim of their prompt."""
    return np.array(
        [
            [accepts(prompt.claim, picture) for picture in row]
            for prompt, row in zip(prompts, pictures, strict=True)
        ],
        bool,
    )


def summary(prompts: Sequence[Prompt], correct: np.ndarray) -> dict[str, Rate]:
    """Rate of each category, in order of appearance, and last the `OVERALL` mean of these.

    correct bool [prompts, each]. Pictures of one text are not independent: intervals are of a
    cluster bootstrap, which draws texts anew within categories (percentiles, fixed seed). It
    cannot see an error where all pictures are right, or all wrong: Wilson's interval, each text
    one trial, stands there. Raises ValueError if a row is missing.
    """
    if len(correct) != len(prompts) or not len(prompts):
        raise ValueError(f'{len(correct)} rows of pictures of {len(prompts)} prompts')
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    found, resampled = {}, []
    for category in categories:
        right, drawn = _texts(category, prompts, correct)
        rng = generator(0, 'bootstrap', category)
        chosen = rng.integers(len(right), size=(_RESAMPLES, len(right)))
        resampled.append(right[chosen].sum(1) / drawn[chosen].sum(1))
        rate = float(right.sum() / drawn.sum())
        found[category] = _rate(rate, resampled[-1], len(right), int(drawn.sum()))
    rate = float(np.mean([each.rate for each in found.values()]))
    texts = sum(each.prompts for each in found.values())
    overall = _rate(rate, np.mean(resampled, 0), texts, int(np.size(correct)))
    return {**found, OVERALL: overall}


def _texts(category: str, prompts, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(right pictures, all pictures) of each text of a category."""
    right, drawn = Counter(), Counter()
    for prompt, row in zip(prompts, correct):
        if prompt.category == category:
            right[prompt.text] += int(np.sum(row))
            drawn[prompt.text] += len(row)
    return np.array([right[text] for text in drawn]), np.array(list(drawn.values()))


def _rate(rate: float, resampled: np.ndarray, prompts: int, pictures: int) -> Rate:
    if rate in (0.0, 1.0):
        low, high = wilson(rate, prompts)
    else:
        low, high = np.quantile(resampled, (0.025, 0.975))
    return Rate(rate, min(rate, float(low)), max(rate, float(high)), prompts, pictures)


def table(rates: dict[str, Rate]) -> str:
    """A summary as text."""
    lines = [f'{"category":16s} {"rate":>7s} {"95 % interval":>17s} {"texts":>6s} {"pictures":>9s}']
    for name, each in rates.items():
        lines.append(
            f'{name:16s} {each.rate:7.1%} {each.low:7.1%} .. {each.high:6.1%} '
            f'{each.prompts:6d} {each.pictures:9d}'
        )
    return '\n'.join(lines)


def across_seeds(values: Sequence[float]) -> Mean:
    """Mean of one score over trainings that differ in their seed, with Student's t interval."""
    values, count = np.asarray(values, np.float64), len(values)
    if not count:
        raise ValueError('no seed has a score')
    mean = float(values.mean())
    if count == 1:
        return Mean(mean, math.nan, math.nan, count)
    half = student(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return Mean(mean, mean - half, mean + half, count)


def student(freedom: int, share: float = 0.95) -> float:
    """The t of `freedom` degrees within which, on both sides of 0, this share lies.

    With t = sqrt(freedom) tan(a) the density of a is proportional to cos(a)**(freedom - 1).
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(share * mass[-1], mass, angle))
