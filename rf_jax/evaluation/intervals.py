"""Rates over seeds and prompts, with 95 % intervals and paired differences by bootstrap.

As in GenEval (Ghosh et al. 2023): the score of a category is the mean over its images, the
overall score is the mean over categories. Images of one text are not independent, so the
bootstrap resamples texts, not images. A bootstrap gives a category that is all correct or all
wrong no variance, nor one with a single text; its rate is sampled from Jeffreys' posterior instead,
with each prompt as one trial (a text may be repeated). The prior's half a success is shared by all
such categories, so that it does not accumulate.

Prompts are the same for all seeds and arms, so a replicate resamples both, crossed: as many seeds,
and as many texts of each category, with replacement. Every arm uses the same replicates, which
pairs their differences. Resampling n seeds shows only (n - 1) / n of their variance, so the
deviations of seeds are scaled by the square root of n / (n - 1). With few seeds the interval is
still too narrow, as it does not use Student's t, and with one seed it covers prompts only: a report
should show the rate of each seed beside it (`student_interval` is the other extreme).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.evaluation.retrieval import wilson
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator

REPLICATES = 2000


@dataclass(frozen=True)
class Trials:
    """Results of one category: `correct` float64 [seeds, texts], of `total` [texts] trials."""

    correct: np.ndarray
    total: np.ndarray
    prompts: int  # several may have the same text

    @property
    def rate(self) -> float:
        """Mean over seeds and images."""
        return float(self.correct.sum() / (len(self.correct) * self.total.sum()))


Outcomes = Mapping[str, Trials]  # by category


@dataclass(frozen=True)
class Estimate:
    """A rate, or a difference of rates, with its 95 % interval; `seeds`: the value of each seed."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f'{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]'


def sides(values: Mapping) -> dict[str, dict]:
    """{side: {category: its entry}} of a score; its questions are the side 'understanding'."""
    answers = {'understanding': values['understanding']} if values['understanding'] else {}
    return values['generation'] | answers


def first(values: Mapping, count: int) -> dict:
    """The part of a score over the first `count` prompts of each category, one image each, and
    the first `count` questions of each kind.

    Every point of a study's curve has that part, so that all points are comparable.
    """
    generation = {
        side: {
            category: {
                'prompts': entry['prompts'][:count],
                'correct': [each[:1] for each in entry['correct'][:count]],
            }
            for category, entry in categories.items()
        }
        for side, categories in values['generation'].items()
    }
    answers = {
        kind: entry | {'correct': entry['correct'][:count]}
        for kind, entry in values['understanding'].items()
    }
    return {**values, 'generation': generation, 'understanding': answers}


def gather(group: Iterable[tuple[object, Mapping]], side: str) -> Outcomes:
    """Outcomes of (run, its score), one run per seed; empty if the side was not evaluated.

    Equal prompts are the same text; each question is a text of its own. Raises UserError if the
    seeds were evaluated on different texts or categories.
    """
    rows: dict[str, list[dict]] = {}
    prompts: dict[str, int] = {}
    totals: dict[str, dict] = {}
    for _, values in group:
        for category, entry in sides(values).get(side, {}).items():
            correct, total = {}, {}
            prompts[category] = len(entry['correct'])
            for i, each in enumerate(entry['correct']):
                text = entry['prompts'][i] if 'prompts' in entry else i
                correct[text] = correct.get(text, 0) + np.sum(each)
                total[text] = total.get(text, 0) + np.size(each)
            rows.setdefault(category, []).append(correct)
            if totals.setdefault(category, total) != total:
                raise UserError(
                    f'{side} {category}: the seeds of a run were evaluated on different texts'
                )
    if len({len(each) for each in rows.values()}) > 1:
        raise UserError(
            f'{side}: the seeds of a run were evaluated on different categories: not all have '
            + ', '.join(rows)
        )
    return {
        category: Trials(
            np.array([[correct[text] for text in totals[category]] for correct in each], float),
            np.array(list(totals[category].values()), float),
            prompts[category],
        )
        for category, each in rows.items()
    }


def estimate(outcomes: Outcomes) -> Estimate:
    """Mean over categories of the correct share."""
    each = per_seed(outcomes)
    value = float(each.mean())
    low, high = np.percentile(replicates(outcomes), (2.5, 97.5))
    least = -1.0 if any(trials.correct.min() < 0 for trials in outcomes.values()) else 0.0  # cosine
    low, high = min(value, max(least, float(low))), max(value, min(1.0, float(high)))
    return Estimate(value, low, high, tuple(each.tolist()))


def difference(outcomes: Outcomes, reference: Outcomes) -> Estimate:
    """`outcomes` minus `reference`, for the same seeds and texts."""
    values = replicates(outcomes) - replicates(reference, 'reference')
    low, high = np.percentile(values, (2.5, 97.5))
    if np.ptp(values) < 1e-9:  # equal everywhere: allow for what so few texts may hide
        hidden = wilson(0.0, sum(len(trials.total) for trials in outcomes.values()))[1]
        low, high = low - hidden, high + hidden
    each = per_seed(outcomes) - per_seed(reference)
    low, high = max(-1.0, float(low)), min(1.0, float(high))
    return Estimate(float(each.mean()), low, high, tuple(each.tolist()))


def per_seed(outcomes: Outcomes) -> np.ndarray:
    """float64 [seeds]: mean over categories."""
    return np.mean([t.correct.sum(1) / t.total.sum() for t in outcomes.values()], 0)


def replicates(outcomes: Outcomes, hidden: str = 'own') -> np.ndarray:
    """float64 [REPLICATES]: bootstrap replicates of the mean over categories.

    Outcomes of equal shapes resample the same seeds and texts. `hidden` names the randomness of the
    categories that are all correct or all wrong, or have a single text.
    """
    rng = generator('bootstrap')
    seeds = len(next(iter(outcomes.values())).correct)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), REPLICATES) / seeds
    of_seeds = 1 / seeds + (of_seeds - 1 / seeds) * (seeds / max(seeds - 1, 1)) ** 0.5
    total = np.zeros(REPLICATES)
    prior = 0.5 / max(1, sum(map(_is_constant, outcomes.values())))
    for category, trials in sorted(outcomes.items()):
        count = len(trials.total)
        of_texts = rng.multinomial(count, np.full(count, 1 / count), REPLICATES)
        if _is_constant(trials):
            correct = trials.prompts * min(max(trials.rate, 0.0), 1.0)
            rng_constant = generator('constant', hidden, category)
            total += rng_constant.beta(
                correct + prior, trials.prompts - correct + prior, REPLICATES
            )
            continue
        correct = np.einsum('ds,st,dt->d', of_seeds, trials.correct, of_texts, optimize=True)
        total += correct / (of_texts @ trials.total)
    return total / len(outcomes)


def _is_constant(trials: Trials) -> bool:
    """Whether resampling texts shows no variance."""
    return trials.rate in (0.0, 1.0) or len(trials.total) == 1


def table(outcomes: Outcomes) -> str:
    """As text: each category, then their mean."""
    parts = {name: {name: trials} for name, trials in outcomes.items()} | {'overall': outcomes}
    lines = [f'{"category":16s} {"rate":>7s} {"95 % interval":>17s} {"texts":>6s} {"images":>9s}']
    for name, part in parts.items():
        each = estimate(part)
        texts = sum(len(trials.total) for trials in part.values())
        images = sum(int(trials.total.sum() * len(trials.correct)) for trials in part.values())
        lines.append(
            f'{name:16s} {each.value:7.1%} {each.low:7.1%} .. {each.high:6.1%} '
            f'{texts:6d} {images:9d}'
        )
    return '\n'.join(lines)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of at least two values, one per seed."""
    values = np.asarray(values, np.float64)
    half = student(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def student(freedom: int, share: float = 0.95) -> float:
    """The two-sided quantile of Student's t: |t| is below it with probability `share`.

    `freedom`: degrees of freedom. With t = sqrt(freedom) tan(a) the density of a is
    proportional to cos(a)**(freedom - 1).
    """
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(share * mass[-1], mass, angle))
