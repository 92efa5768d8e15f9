"""timeline.py: windows cover every step and every example once, also where weights change."""

import numpy as np
import pytest

from rf_jax.data.packing.timeline import Phase, Timeline

PHASES = (
    Phase(0, 3, {'a': 30, 'b': 7}),
    Phase(8, 4, {'b': 11}),
    Phase(9, 5, {'a': 5, 'b': 5}),
    Phase(24, 2, {'a': 9}),
)


def timeline_of(phases):
    timeline = Timeline(('a', 'b'))
    for phase in phases:
        timeline.add(phase)
    return timeline


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_windows_follow_each_other_without_gaps(count):
    phases = PHASES[:count]
    timeline = timeline_of(phases)
    step, positions = 0, {'a': 0, 'b': 0}
    for number in range(20):
        span = timeline.window(number)
        phase = [each for each in phases if each.first_step <= step][-1]
        assert (span.number, span.first_step, span.starts) == (number, step, positions)
        assert 0 < span.steps <= phase.steps
        share = span.steps / phase.steps
        for task in 'ab':
            assert span.sizes[task] == int(phase.sizes.get(task, 0) * share)
        for within in range(span.steps):
            assert timeline.at(step + within) == span
        step += span.steps
        positions = {task: positions[task] + span.sizes[task] for task in 'ab'}


def test_a_phase_begins_at_its_step():
    timeline = timeline_of(PHASES)
    starts = {timeline.at(step).first_step for step in range(40)}
    assert {phase.first_step for phase in PHASES} <= starts


def test_positions_need_no_bound():
    timeline = timeline_of(PHASES[:1])
    span = timeline.at(3 * 10**18)
    assert span.starts['a'] == 30 * 10**18 and np.int64(span.first_step) >= 0
