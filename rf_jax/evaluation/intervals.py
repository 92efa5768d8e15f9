"""Rates over seeds and prompts, with 95 % intervals and paired differences by bootstrap.

As GenEval (Ghosh et al. 2023): a category's score is the mean over its pictures, the overall score
the mean over categories. Pictures of one text are not independent, so texts are drawn, not
pictures. Of a category that is all right or all wrong a bootstrap cannot see the error: its rate is
drawn from Jeffreys' posterior, each prompt one trial (a text comes again where the category has no
more), with his half a success shared by all such categories, so that it does not add up.

Prompts are the same for all seeds and arms, so both are drawn anew, crossed: a replicate takes as
many seeds, and as many texts of each category, with replacement. The same draws serve every arm,
which pairs their differences. Drawing n seeds of n anew shows (n - 1) / n of their variance, so
deviations of seeds are widened by the root of n / (n - 1); of few seeds the interval is narrow all
the same, as it knows no Student's t, and of one it tells of prompts only: a report should show each
seed's rate beside it (`student_interval` is the other extreme).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.evaluation.retrieval import wilson
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator

DRAWS = 2000


@dataclass(frozen=True)
class Trials:
    """Of one category: `right` float64 [seeds, texts], how many were right of `asked` [texts]."""

    right: np.ndarray
    asked: np.ndarray
    prompts: int  # some may be of the same text

    @property
    def rate(self) -> float:
        """Mean over seeds and pictures."""
        return float(self.right.sum() / (len(self.right) * self.asked.sum()))


Outcomes = Mapping[str, Trials]  # by category


@dataclass(frozen=True)
class Estimate:
    """A rate, or a difference of rates, with its 95 % interval; `seeds`: its value for each."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def sides(values: Mapping) -> dict[str, dict]:
    """{side: {category: its entry}} of a score; the questions are the side 'understanding'."""
    asked = {'understanding': values['understanding']} if values['understanding'] else {}
    return values['generation'] | asked


def first(values: Mapping, count: int) -> dict:
    """The score as if less had been asked: `count` prompts of each category, one picture each, and
    `count` questions of each kind.

    That much is asked at every point of a study's curve, so that all points ask the same.
    """
    drawn = {
        side: {
            category: {
                'prompts': entry['prompts'][:count],
                'correct': [each[:1] for each in entry['correct'][:count]],
            }
            for category, entry in categories.items()
        }
        for side, categories in values['generation'].items()
    }
    asked = {
        kind: entry | {'correct': entry['correct'][:count]}
        for kind, entry in values['understanding'].items()
    }
    return {**values, 'generation': drawn, 'understanding': asked}


def gather(group: Iterable[tuple[object, Mapping]], side: str) -> Outcomes:
    """Outcomes of (run, its score), one run a seed; empty if a side was not asked.

    A prompt that comes again is the same text; each question is a text of its own. Raises UserError
    if seeds were asked different texts.
    """
    rows: dict[str, list[dict]] = {}
    prompts: dict[str, int] = {}
    asked: dict[str, dict] = {}
    for _, values in group:
        for category, entry in sides(values).get(side, {}).items():
            right, count = {}, {}
            prompts[category] = len(entry['correct'])
            for i, each in enumerate(entry['correct']):
                text = entry['prompts'][i] if 'prompts' in entry else i
                right[text] = right.get(text, 0) + np.sum(each)
                count[text] = count.get(text, 0) + np.size(each)
            rows.setdefault(category, []).append(right)
            if asked.setdefault(category, count) != count:
                raise UserError(f'{side} {category}: the seeds of a run were asked different texts')
    return {
        category: Trials(
            np.array([[right[text] for text in asked[category]] for right in each], float),
            np.array(list(asked[category].values()), float),
            prompts[category],
        )
        for category, each in rows.items()
    }


def estimate(outcomes: Outcomes) -> Estimate:
    """Mean over categories of the share that is right."""
    each = per_seed(outcomes)
    value = float(each.mean())
    low, high = np.percentile(replicates(outcomes), (2.5, 97.5))
    low, high = max(0.0, min(value, float(low))), min(1.0, max(value, float(high)))
    return Estimate(value, low, high, tuple(each.tolist()))


def difference(outcomes: Outcomes, reference: Outcomes) -> Estimate:
    """`outcomes` minus `reference`, for the same seeds and texts."""
    drawn = replicates(outcomes) - replicates(reference, 'reference')
    low, high = np.percentile(drawn, (2.5, 97.5))
    if np.ptp(drawn) < 1e-9:  # right and wrong alike everywhere: what so few texts could hide
        hidden = wilson(0.0, sum(len(trials.asked) for trials in outcomes.values()))[1]
        low, high = low - hidden, high + hidden
    each = per_seed(outcomes) - per_seed(reference)
    low, high = max(-1.0, float(low)), min(1.0, float(high))
    return Estimate(float(each.mean()), low, high, tuple(each.tolist()))


def per_seed(outcomes: Outcomes) -> np.ndarray:
    """float64 [seeds]: mean over categories."""
    return np.mean([t.right.sum(1) / t.asked.sum() for t in outcomes.values()], 0)


def replicates(outcomes: Outcomes, hidden: str = 'own') -> np.ndarray:
    """float64 [DRAWS], of the mean over categories. The same seeds and texts are drawn for the same
    shapes, but what constant categories may hide is drawn by the name `hidden`.
    """
    rng = generator('bootstrap')
    seeds = len(next(iter(outcomes.values())).right)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    of_seeds = 1 / seeds + (of_seeds - 1 / seeds) * (seeds / max(seeds - 1, 1)) ** 0.5
    total = np.zeros(DRAWS)
    prior = 0.5 / max(1, sum(trials.rate in (0.0, 1.0) for trials in outcomes.values()))
    for category, trials in sorted(outcomes.items()):
        count = len(trials.asked)
        of_texts = rng.multinomial(count, np.full(count, 1 / count), DRAWS)
        if trials.rate in (0.0, 1.0):
            right = trials.prompts * trials.rate
            unseen = generator('constant', hidden, category)
            total += unseen.beta(right + prior, trials.prompts - right + prior, DRAWS)
            continue
        right = np.einsum('ds,st,dt->d', of_seeds, trials.right, of_texts, optimize=True)
        total += right / (of_texts @ trials.asked)
    return total / len(outcomes)


def table(outcomes: Outcomes) -> str:
    """As text: each category, and last the mean of these."""
    parts = {name: {name: trials} for name, trials in outcomes.items()} | {'overall': outcomes}
    lines = [f'{"category":16s} {"rate":>7s} {"95 % interval":>17s} {"texts":>6s} {"pictures":>9s}']
    for name, part in parts.items():
        each = estimate(part)
        texts = sum(len(trials.asked) for trials in part.values())
        pictures = sum(int(trials.asked.sum() * len(trials.right)) for trials in part.values())
        lines.append(
            f'{name:16s} {each.value:7.1%} {each.low:7.1%} .. {each.high:6.1%} '
            f'{texts:6d} {pictures:9d}'
        )
    return '\n'.join(lines)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two values or more, one a seed."""
    values = np.asarray(values, np.float64)
    half = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def student(freedom: int, share: float = 0.95) -> float:
    """The t of `freedom` degrees within which, on both sides of 0, this share lies.

    With t = sqrt(freedom) tan(a) the density of a is proportional to cos(a)**(freedom - 1).
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(share * mass[-1], mass, angle))
