"""mixture.py: an endless order in which every example comes once per epoch, readable anywhere."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from rf_jax.data.hashing import hash64
from rf_jax.data.mixture import Mixture, shuffled


@pytest.mark.parametrize('count', [1, 2, 3, 4, 5, 7, 8, 9, 97, 128, 1000, 1851, 65_537])
def test_a_shuffle_is_a_permutation(count):
    for key in range(3):
        found = shuffled(np.arange(count), count, np.uint64(key))
        assert sorted(found.tolist()) == list(range(count))


@pytest.mark.parametrize('count', [10**9, 2**32 + 15, 2**40 - 87, 3 * 10**12])
def test_a_long_shuffle_repeats_nothing_and_stays_in_range(count):
    positions = np.concatenate([
        np.arange(50_000), np.arange(count - 50_000, count), count // 2 + np.arange(50_000)
    ])  # fmt: skip
    found = shuffled(positions, count, np.uint64(5))
    assert found.min() >= 0 and found.max() < count
    assert len(np.unique(found)) == len(positions)
    tenths = np.bincount(found * 10 // count, minlength=10) / len(found)
    assert np.abs(tenths - 0.1).max() < 0.005
    assert abs(np.corrcoef(found, positions)[0, 1]) < 0.02


@pytest.mark.parametrize('count', [2, 3, 4, 5])
def test_all_orders_of_a_few_examples_are_equally_likely(count):
    number = 240 * len(list(permutations(range(count))))
    keys = np.repeat(hash64(np.arange(number, dtype=np.uint64)), count)
    found = shuffled(np.tile(np.arange(count), number), count, keys).reshape(number, count)
    orders = Counter(map(tuple, found.tolist()))
    assert set(orders) == set(permutations(range(count)))
    assert np.abs(np.array(list(orders.values())) - 240).max() < 5 * np.sqrt(240)


def keys_of(examples):
    return Counter((example.task, example.index, example.epoch) for example in examples.list())


def test_every_example_comes_once_per_epoch():
    mixture = Mixture({'small': 10, 'large': 25}, {'small': 1.0, 'large': 0.5}, seed=0)
    shares = {'small': 6, 'large': 3}
    examples = sum((keys_of(mixture.window(n, shares)) for n in range(25)), Counter())
    assert examples == Counter(
        [('small', i, epoch) for epoch in range(15) for i in range(10)]
        + [('large', i, epoch) for epoch in range(3) for i in range(25)]
    )


def test_windows_of_other_sizes_hold_the_same_order():
    mixture = Mixture({'a': 1000}, {'a': 1.0}, seed=4)
    fine = sum((keys_of(mixture.window(n, {'a': 50})) for n in range(30, 60)), Counter())
    coarse = keys_of(mixture.window(1, {'a': 1500}))
    assert fine == coarse


def test_epochs_and_seeds_have_different_orders():
    def first(seed, epoch):
        """The first quarter of an epoch."""
        examples = Mixture({'a': 200}, {'a': 1.0}, seed).window(4 * epoch, {'a': 50})
        assert set(examples.epoch) == {epoch}
        return frozenset(examples.index.tolist())

    assert first(0, 0) == first(0, 0)
    assert len({first(0, 0), first(0, 1), first(0, 2), first(1, 0)}) == 4


def test_weights_are_relative_and_zero_is_left_out():
    counts = {'a': 30, 'b': 12, 'c': 0}
    mixture = Mixture(counts, {'a': 3.0, 'b': 2.0, 'c': 0.0}, 0)
    assert mixture.examples_per_epoch() == 30  # after which the 12 of b are passed once
    assert mixture.examples_per_task(30) == {'a': 18, 'b': 12}
    assert mixture.examples_per_task(30) == Mixture(
        counts, {'a': 30.0, 'b': 20.0, 'c': 0.0}, 0
    ).examples_per_task(30)
    assert Mixture(counts, {'a': 1000.0, 'b': 0.1}, 0).examples_per_task(30) == {'a': 30, 'b': 1}


def test_each_window_mixes_its_tasks_in_an_order_of_its_own():
    mixture = Mixture({'a': 1000, 'b': 1000}, {'a': 1.0, 'b': 1.0}, 0)
    orders = [mixture.window(n, {'a': 32, 'b': 32}).task.tolist() for n in (0, 1, 2, 0)]
    assert orders[0] == orders[3] and len(set(map(tuple, orders))) == 3
    assert all(sum(order[:32]) not in (0, 32) for order in orders)  # neither task comes first
