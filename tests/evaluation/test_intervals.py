"""intervals.py: intervals are as wide as they say."""

import numpy as np
import pytest

from rf_jax.evaluation import intervals, scoring


def of_rates(right):
    """A score of one category: texts by images."""
    return of_categories(colors=right)


def of_categories(**right):
    found = {
        category: {'prompts': [f'text {i}' for i in range(len(each))], 'correct': each}
        for category, each in right.items()
    }
    return {'generation': {'seen': found}, 'understanding': {}}


def estimate(values):
    return intervals.estimate(intervals.gather([(None, values)], 'seen'))


def test_overall_is_the_mean_of_categories():
    values = of_categories(a=[[1] * 4] * 6, b=[[1, 1, 0, 0], [0] * 4])
    outcomes = intervals.gather([(None, values)], 'seen')
    found = {name: intervals.estimate({name: each}) for name, each in outcomes.items()}
    found['overall'] = intervals.estimate(outcomes)
    assert found['a'].value == 1
    assert found['b'].value == 0.25
    assert found['overall'].value == pytest.approx(0.625)  # not the 26 of 32 images
    for each in found.values():
        assert 0 <= each.low < each.value <= each.high <= 1
    assert found['a'].low < 0.7  # six prompts, all right, do not prove 100 %
    assert intervals.table(outcomes).splitlines()[-1].split()[:2] == ['overall', '62.5%']
    assert intervals.table(outcomes).splitlines()[-1].split()[-2:] == ['8', '32']


@pytest.mark.parametrize('right', [[1, 1, 0, 0], [1, 1, 1, 0]])
def test_one_text_says_little_of_others(right):
    """Nothing can be resampled of it; it once had an interval of width 0."""
    found = estimate(of_rates([right]))
    assert found.low < found.value - 0.3 and found.high > min(found.value + 0.2, 0.99)
    outcomes = intervals.gather([(None, of_rates([right]))], 'seen')
    other = intervals.gather([(None, of_rates([[1, 0, 0, 0]]))], 'seen')
    ahead = intervals.difference(outcomes, other)
    assert ahead.low < 0 < ahead.high


def test_the_interval_of_cosines_may_be_below_zero():
    def interval(values):
        trials = intervals.Trials(np.array([values]), np.ones(len(values)), len(values))
        found = intervals.estimate({'similarity': trials})
        return found.low, found.high

    values = np.linspace(0.1, 0.5, 40)
    low, high = interval(values)
    shifted = interval(values - 0.3)  # both signs
    np.testing.assert_allclose(shifted, (low - 0.3, high - 0.3))
    np.testing.assert_allclose(interval(-values), (-high, -low), atol=5e-3)


@pytest.mark.parametrize('values', [[-0.2, -0.1, -0.15], [-0.9]])
def test_the_interval_of_negative_cosines_holds_their_mean(values):
    trials = intervals.Trials(np.array([values]), np.ones(len(values)), len(values))
    found = intervals.estimate({'similarity': trials})
    assert found.low <= found.value <= found.high


def test_intervals_count_prompts_not_images():
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.random((50, 1)) < 0.5, 4, 1)
    apart = rng.permuted(alike.ravel()).reshape(50, 4)
    width = [e.high - e.low for e in (estimate(of_rates((c * 1).tolist())) for c in (alike, apart))]
    assert 1.6 < width[0] / width[1] < 2.5  # the root of 4 images
    again = of_rates((alike * 1).tolist())
    again['generation']['seen']['colors']['prompts'] = [f'text {i % 25}' for i in range(50)]
    assert len(intervals.gather([(None, again)], 'seen')['colors'].total) == 25


def test_the_interval_of_one_seed_holds_the_truth_as_often_as_it_says():
    rng, held = np.random.default_rng(1), 0
    for _ in range(200):
        # Prompts differ in how hard they are: means 0.5 and 0.75.
        hard = {'a': rng.beta(1, 1, (50, 1)), 'b': rng.beta(3, 1, (50, 1))}
        right = {c: ((rng.random((50, 4)) < each) * 1).tolist() for c, each in hard.items()}
        found = estimate(of_categories(**right))
        held += found.low <= 0.625 <= found.high
    assert 0.90 <= held / 200 <= 0.99


@pytest.mark.parametrize('seeds, least', [(16, 0.88), (3, 0.75)])
def test_intervals_hold_the_rate_as_often_as_they_say(seeds, least):
    """Seeds and texts each move the chance of a right image, as they do in a study."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(200):
        chance = 0.5 + rng.uniform(-0.25, 0.25, (seeds, 1, 1)) + rng.uniform(-0.25, 0.25, (16, 1))
        group = [(None, of_rates(r.tolist())) for r in (rng.random((seeds, 16, 4)) < chance) * 1]
        found = intervals.estimate(intervals.gather(group, 'seen'))
        inside += found.low <= 0.5 <= found.high
    assert least <= inside / 200 <= 1


def test_differences_are_paired_by_text():
    rng = np.random.default_rng(0)
    hard = rng.random((50, 1)) < 0.5
    worse = [(None, of_rates((hard & (rng.random((50, 4)) < 0.9)).astype(int).tolist()))]
    better = [(None, of_rates((hard & (rng.random((50, 4)) < 0.99)).astype(int).tolist()))]
    a, b = (intervals.gather(group, 'seen') for group in (better, worse))
    found, alone = intervals.difference(a, b), intervals.estimate(a)
    assert found.value == pytest.approx(alone.value - intervals.estimate(b).value)
    assert found.high - found.low < 0.5 * (alone.high - alone.low)
    same = intervals.difference(a, a)
    assert -0.1 < same.low < 0 < same.high < 0.1, 'fifty texts do not make it certain'


def test_all_right_is_not_certain():
    found = intervals.estimate(intervals.gather([(None, of_rates([[1, 1]] * 10))], 'seen'))
    assert found.value == found.high == 1 and 0.6 < found.low < 0.8


def test_categories_that_are_all_right_or_all_wrong_widen_the_overall_interval():
    found = estimate(of_categories(a=[[1]] * 8, b=[[0]] * 8))
    assert found.low < 0.45 and found.value == 0.5 and found.high > 0.55
    rare, rng, held = {'a': 0.01, 'b': 0.05, 'c': 0.97, 'd': 0.5}, np.random.default_rng(2), 0
    for _ in range(200):
        values = of_categories(**{c: (rng.random((8, 1)) < p).astype(int) for c, p in rare.items()})
        found = estimate(values)
        held += found.low <= np.mean(list(rare.values())) <= found.high
    assert held / 200 >= 0.93


def test_two_arms_that_never_are_right_may_differ():
    never = intervals.gather([(None, of_rates([[0, 0]] * 10))], 'seen')
    found = intervals.difference(never, never)
    assert -0.35 < found.low < -0.1 and found.value == 0 and 0.1 < found.high < 0.35


def test_no_difference_reaches_beyond_one():
    """Resampled seeds are widened, and their difference with them."""
    right = intervals.gather([(None, of_rates([[1]] * 9 + [[x]])) for x in (1, 0)], 'seen')
    wrong = intervals.gather([(None, of_rates([[0]] * 10))] * 2, 'seen')
    found = intervals.difference(right, wrong)
    assert found.low < found.value < found.high <= 1


def test_students_interval():
    for freedom, value in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)):
        assert intervals.student(freedom) == pytest.approx(value, abs=1e-3)
    low, high = intervals.student_interval([0.7, 0.8, 0.75])
    assert (high - low) / 2 == pytest.approx(4.303 * 0.05 / 3**0.5, abs=1e-4)
    assert (low + high) / 2 == pytest.approx(0.75)


def test_the_line_of_a_score_has_the_rates_of_its_report():
    """Kinds with few questions weigh as much as others."""
    kinds = {'count': {'correct': [1] * 9}, 'where': {'correct': [0]}}
    values = {part: {} for part in ('distances', 'variety', 'codebook', 'autoencoder')}
    values |= of_rates([[1, 0]]) | {'understanding': kinds}
    whole = intervals.estimate(intervals.gather([(None, values)], 'understanding')).value
    assert scoring.line(values) == f'seen 0.500 | understanding {whole:.3f}'
