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


def test_capacities_are_compared_on_part_of_many_short_rows(monkeypatch):
    """All rows of a window of short ones take minutes, for each of the capacities."""
    plan = Plan(mixture(1, 1), sizes_of, CAPACITY, batch_size=8)
    monkeypatch.setattr(packing_stats, '_ROWS', 50)
    packed, fewest_rows = [], packing_stats.bins.fewest_rows

    def counted(sizes, capacity):
        packed.append(len(sizes))
        return fewest_rows(sizes, capacity)

    monkeypatch.setattr(packing_stats.bins, 'fewest_rows', counted)
    capacity, fill = packing_stats.recommended(plan, 64)
    assert max(packed) < 300, 'about 50 rows of five'
    assert capacity[0] == 64 and 0.9 < fill <= 1


def test_no_better_capacities_where_none_are_asked_for(monkeypatch):
    monkeypatch.setattr(packing_stats, 'recommended', lambda *_: (CAPACITY, 1.0))
    plan = Plan(mixture(1, 1), sizes_of, CAPACITY, batch_size=8)
    assert 'row fill would be' in '\n'.join(packing_stats.lines(plan, 100))
    assert 'row fill would be' not in '\n'.join(packing_stats.lines(plan, 100, group=0))
