"""packing_stats.py: how full the rows of a plan are, as counted row by row."""

import numpy as np
import pytest

from rf_jax.data.mixture import Mixture
from rf_jax.data.packing.plan import Plan
from rf_jax.planning import packing_stats

CAPACITY = [64, 0, 0, 0, 0, 0]


def sizes_of(task, index, epoch):
    text, none = 10 + index % 7, 0 * index
    return np.stack([text, none, none, none, none, none], 1)


def mixture(*weights):
    return Mixture({'one': 900, 'other': 900}, dict(zip(('one', 'other'), weights)), seed=0)


@pytest.mark.parametrize('later', [[], [(10, mixture(1, 3)), (35, mixture(3, 1))]])
def test_windows_cut_short_by_other_weights_count_with_their_own_steps(later):
    plan = Plan(mixture(1, 1), sizes_of, CAPACITY, batch_size=8, later=later)
    found = packing_stats.measure(plan, 1000)
    rows = [row for step in range(found.steps) for row in plan.rows(step)]
    examples = [example for row in rows for example in row]
    used = sum(10 + example.index % 7 for example in examples)
    assert found.row_fill == pytest.approx(used / (64 * len(rows)))
    assert found.fill == pytest.approx({'text': found.row_fill})
    assert found.examples >= 1000
    assert found.examples - found.carried <= len(examples) <= found.examples
