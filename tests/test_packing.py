"""packing.py: the plan is integers that follow from (sizes, mixture, seed, epoch) alone."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rf_jax.data.packing import Draw, Mixture, Plan, pack

CAPACITY = np.array([20, 8, 10, 32, 2, 2])


def size_of(draw: Draw) -> np.ndarray:
    """Sizes of every kind, which depend on the whole draw as real ones do."""
    rng = np.random.default_rng([draw.index, draw.turn, len(draw.task)])
    text = rng.integers(1, 12)
    if draw.task == 'drawn':
        patches = rng.choice([4, 8, 16])
        return np.array([text, 0, patches // 4 + 1, patches, 0, 1])
    return np.array([text, rng.choice([1, 2, 4]), 0, 0, 1, 0])


def plan(seed=0, counts=None, weights=None, rows=8) -> Plan:
    counts = counts or {'drawn': 37, 'seen': 37}
    weights = weights or dict.fromkeys(counts, 1.0)
    return Plan(Mixture(counts, weights, seed), size_of, CAPACITY, rows)


def test_the_plan_is_a_function_of_seed_and_step():
    steps = [3, 0, 25, 11, 3, 12]
    one, two = plan(), plan()
    assert one.steps_per_epoch == two.steps_per_epoch
    wanted = {step: one.rows(step) for step in range(30)}
    for step in steps:  # in any order
        assert two.rows(step) == wanted[step]
    assert plan(seed=1).rows(0) != wanted[0]
    epochs = [wanted[0], wanted[one.steps_per_epoch], wanted[2 * one.steps_per_epoch]]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_reader_threads_share_one_packing():
    """Else each of them packs an epoch that is new to all."""
    packed = Counter()

    def counted(draw):
        packed[draw.turn] += 1
        return size_of(draw)

    one = Plan(Mixture({'drawn': 200}, {'drawn': 1.0}, 0), counted, CAPACITY, 8)
    wanted = plan(counts={'drawn': 200})
    steps = [0, *range(one.steps_per_epoch, one.steps_per_epoch + 8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one.rows, steps))
    assert found == [wanted.rows(step) for step in steps]
    assert packed == {0: 200, 1: 200}


@pytest.mark.parametrize('epochs', [range(3), range(7, 8)])
def test_every_sample_once_a_pass(epochs):
    mixture = Mixture({'drawn': 37, 'seen': 37}, {'drawn': 1.0, 'seen': 1.0}, seed=3)
    for epoch in epochs:
        draws = mixture.epoch(epoch)
        assert Counter(draws) == Counter(
            Draw(task, i, epoch) for task in ('drawn', 'seen') for i in range(37)
        )


def test_the_larger_task_is_passed_over_several_epochs():
    mixture = Mixture({'small': 10, 'large': 25}, {'small': 1.0, 'large': 0.5}, seed=0)
    assert mixture.per_epoch() == {'small': 10, 'large': 5}
    draws = [draw for epoch in range(10) for draw in mixture.epoch(epoch) if draw.task == 'large']
    assert Counter(draws) == Counter(Draw('large', i, turn) for turn in (0, 1) for i in range(25))
    first, second = ([d.index for d in draws if d.turn == turn] for turn in (0, 1))
    assert first != second  # every pass in an order of its own


def test_weights_are_ratios_and_zero_is_left_out():
    counts = {'a': 30, 'b': 12, 'c': 0}
    numbers = Mixture(counts, {'a': 3.0, 'b': 2.0, 'c': 0.0}, 0).per_epoch()
    assert numbers == {'a': 18, 'b': 12}
    assert numbers == Mixture(counts, {'a': 30.0, 'b': 20.0, 'c': 0.0}, 0).per_epoch()
    assert {draw.task for draw in Mixture(counts, {'b': 0.1}, 0).epoch(0)} == {'b'}


def test_every_draw_of_an_epoch_stands_in_its_rows():
    one = plan(counts={'drawn': 61, 'seen': 61})
    for epoch in range(4):
        start = epoch * one.steps_per_epoch
        rows = [row for step in range(one.steps_per_epoch) for row in one.rows(start + step)]
        assert len(rows) == one.steps_per_epoch * 8
        unique = {str(row): row for row in rows}  # rows come again only to fill the last batch
        assert Counter(d for row in unique.values() for d in row) == Counter(
            one.mixture.epoch(epoch)
        )
        assert len(rows) - len(unique) < 3 * 8


@pytest.mark.parametrize('open_rows', [1, 4, 512])
def test_rows_never_exceed_any_capacity(open_rows):
    rng = np.random.default_rng(open_rows)
    for _ in range(20):
        sizes = rng.integers(0, CAPACITY + 1, (60, 6))
        rows = pack(sizes, CAPACITY, open_rows)
        assert all((sizes[row].sum(0) <= CAPACITY).all() for row in rows)
        assert sorted(i for row in rows for i in row) == list(range(60))


def test_full_rows_are_found():
    """Samples that pair up exactly fill half as many rows, and open rows are what finds them."""
    sizes = np.repeat([[6], [4]], 50, axis=0)
    assert len(pack(sizes, np.array([10]))) == 50
    assert len(pack(sizes, np.array([10]), open_rows=1)) > 50


def test_a_closed_row_is_the_fullest():
    sizes = np.array([[9], [5], [8], [5]])
    rows = pack(sizes, np.array([10]), open_rows=2)
    assert rows == [[0], [1, 3], [2]]  # the third sample closes the first row, not the second


def test_a_sample_beyond_an_empty_row_is_named():
    with pytest.raises(ValueError, match='sample 1 exceeds'):
        pack(np.array([[3, 1], [1, 4], [9, 9]]), np.array([5, 3]))


def test_the_first_row_with_room_takes_a_sample():
    assert pack(np.array([[6], [7], [3]]), np.array([10])) == [[0, 2], [1]]


def test_rows_are_shuffled():
    """Else first-fit would put the emptiest rows of every epoch at its end."""
    one = plan(counts={'drawn': 200, 'seen': 200})
    place = {draw: i for i, draw in enumerate(one.mixture.epoch(0))}
    opened = [place[row[0]] for step in range(one.steps_per_epoch - 2) for row in one.rows(step)]
    assert opened != sorted(opened)  # as packing opened them
