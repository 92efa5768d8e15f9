"""Rates over seeds and prompts, with 95 % intervals and paired differences by bootstrap.

Prompts are the same for all seeds and arms, so both are drawn anew, crossed: a replicate takes as
many seeds and as many prompts of each category with replacement. The same draws serve every arm,
which makes differences paired. Of few seeds the bootstrap is somewhat narrow: a report should show
each seed's rate beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from rf_jax.data.keys import generator
from rf_jax.evaluation.identification import wilson

DRAWS = 2000
Outcomes = Mapping[str, np.ndarray]  # category -> share of right pictures [seeds, prompts]


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


def gather(group: Iterable[tuple[object, Mapping]], side: str) -> Outcomes:
    """Outcomes of (run, its score), one run a seed; empty if a side was not asked."""
    found: dict[str, list] = {}
    for _, values in group:
        for category, entry in sides(values).get(side, {}).items():
            each = np.asarray(entry['correct'], float)
            found.setdefault(category, []).append(each.reshape(len(each), -1).mean(1))
    return {category: np.stack(rows) for category, rows in found.items()}


def estimate(outcomes: Outcomes) -> Estimate:
    """Mean over categories of the mean over seeds and prompts."""
    value = mean(outcomes)
    seeds = tuple(
        mean({name: each[i : i + 1] for name, each in outcomes.items()})
        for i in range(len(next(iter(outcomes.values()))))
    )
    if value in (0.0, 1.0):  # all replicates are alike: prompts as trials of one rate
        return Estimate(value, *wilson(value, sum(x.shape[1] for x in outcomes.values())), seeds)
    low, high = np.percentile(replicates(outcomes), (2.5, 97.5))
    return Estimate(value, float(low), float(high), seeds)


def difference(outcomes: Outcomes, reference: Outcomes) -> Estimate:
    """`outcomes` minus `reference`, for the same seeds and prompts."""
    low, high = np.percentile(replicates(outcomes) - replicates(reference), (2.5, 97.5))
    return Estimate(mean(outcomes) - mean(reference), float(low), float(high))


def mean(outcomes: Outcomes) -> float:
    """Mean over categories."""
    return float(np.mean([each.mean() for each in outcomes.values()]))


def replicates(outcomes: Outcomes) -> np.ndarray:
    """float64 [DRAWS], of the mean over categories; the same draws for the same shapes."""
    rng = generator('bootstrap')
    seeds = len(next(iter(outcomes.values())))
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    total = np.zeros(DRAWS)
    for name in sorted(outcomes):
        count = outcomes[name].shape[1]
        of_prompts = rng.multinomial(count, np.full(count, 1 / count), DRAWS) / count
        total += np.einsum('ds,sn,dn->d', of_seeds, outcomes[name], of_prompts)
    return total / len(outcomes)
