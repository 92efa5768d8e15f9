"""bins.py: examples into rows of fixed capacities: none exceeded, all streams full."""

import numpy as np
import pytest

from configs import base
from rf_jax.data.packing import bins
from rf_jax.data.packing.bins import fewest_rows, pack, recommended_capacity
from rf_jax.planning.packing_stats import KINDS, SyntheticSizes

CAPACITY = np.array([20, 8, 10, 32, 2, 2])


def filled(sizes, rows, count):
    used = np.zeros((count, sizes.shape[1]), np.int64)
    np.add.at(used, rows[rows >= 0], sizes[rows >= 0])
    return used


@pytest.mark.parametrize('count', [1, 3, 20, 60, 1300])
@pytest.mark.parametrize('samples', [0, 1, 60, 2000])
def test_rows_never_exceed_any_capacity(count, samples):
    sizes = np.random.default_rng(count).integers(0, CAPACITY // 2 + 1, (samples, 6))
    rows, room = pack(sizes, CAPACITY, count)
    assert rows.min(initial=0) >= -1 and rows.max(initial=0) < count
    used = filled(sizes, rows, count)
    assert (used <= CAPACITY).all()
    np.testing.assert_array_equal(room, CAPACITY - used)


def test_examples_left_over_fit_into_no_row():
    sizes = np.random.default_rng(0).integers(0, CAPACITY + 1, (900, 6))
    rows, room = pack(sizes, CAPACITY, 600)
    left = sizes[rows < 0]
    assert len(left)
    assert not (left[:, None] <= room).all(2).any()


def test_no_row_stays_empty_while_another_has_several():
    sizes = np.random.default_rng(0).integers(0, [8, 3, 4, 9, 2, 2], (200, 6))
    rows, room = pack(sizes, CAPACITY, 150)
    assert len(np.unique(rows)) == 150 and (rows >= 0).all()
    np.testing.assert_array_equal(room, CAPACITY - filled(sizes, rows, 150))


def test_examples_that_pair_up_exactly_are_paired():
    sizes = np.repeat([[6], [4]], 50, axis=0)
    rows, room = pack(sizes, np.array([10]), 50)
    assert (rows >= 0).all() and not room.any()


def test_fewest_rows_suffice_and_one_fewer_does_not():
    sizes = np.random.default_rng(1).integers(0, CAPACITY // 3 + 1, (700, 6))
    rows = fewest_rows(sizes, CAPACITY)
    assert (pack(sizes, CAPACITY, rows)[0] >= 0).all()
    assert (pack(sizes, CAPACITY, rows - 1)[0] < 0).any()


def test_an_example_larger_than_a_row_is_an_error():
    with pytest.raises(ValueError, match=r'example 1 .* exceeds'):
        pack(np.array([[3, 1], [1, 4], [9, 9]]), np.array([5, 3]), 2)


def test_best_fit_picks_the_fullest_row():
    room = np.array([[9, 9], [4, 1], [4, 9]])
    sizes = np.array([[4, 0], [4, 4], [9, 9], [5, 5]])
    assert bins.best_fit(sizes, room, room.max(0)).tolist() == [1, 2, 0, -1]
    assert room.tolist() == [[0, 0], [0, 1], [0, 5]]


def test_best_fit_is_what_its_docstring_says():
    """Also for examples that use no dimension, which any row has room for."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(0, CAPACITY // 2 + 1, (300, 6)) * rng.integers(0, 2, (300, 6))
    sizes[::50] = 0
    room = rng.integers(0, CAPACITY + 1, (40, 6))
    left, expected = room.copy(), []
    for size in sizes:
        uses = size > 0
        fullness = (left * (2**20 // CAPACITY))[:, uses].sum(1)
        fits = np.flatnonzero((left >= size).all(1))
        expected.append(min(fits, key=fullness.__getitem__) if len(fits) else -1)
        left[expected[-1]] -= size if len(fits) else 0
    assert bins.best_fit(sizes, room, CAPACITY).tolist() == expected
    np.testing.assert_array_equal(room, left)
    assert -1 in expected and len(set(expected)) == 41


def sizes_like(kind, count=2**15, **data):
    config = base.get_config()
    config.data.update({'sizes': ((256, 1.0),), 'max_text_tokens': 256} | data)
    made_up = SyntheticSizes(kind, config)
    index, turn = np.arange(count), np.zeros(count, int)
    tasks = ('text_to_image', 'image_to_text')
    return np.concatenate([made_up.sizes(task, index, turn) for task in tasks])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sizes', [((256, 1.0),), ((256, 0.5), (512, 0.3), (1024, 0.2))])
def test_long_rows_are_full_in_every_stream(kind, sizes):
    samples = sizes_like(kind, sizes=sizes)
    capacity = recommended_capacity(samples, 32_768)
    assert capacity[:4].sum() == 32_768
    rows = fewest_rows(samples, capacity)
    fill = samples.sum(0)[:4] / (rows * capacity[:4])
    assert fill.min() >= 0.97, fill
    for tokens in (4100, 9000):  # a pool of 4 stores groups of 16
        assert recommended_capacity(samples, tokens, group=16)[3] % 16 == 0


def test_short_rows_are_as_full_as_with_first_fit():
    rng = np.random.default_rng(3)
    text = rng.integers(4, 15, (3000, 1))
    big = rng.random(1500) < 0.7
    drawn = np.where(big[:, None], [[0, 5, 16, 0, 1]], [[0, 2, 4, 0, 1]])
    seen = np.where(big[:, None], [[4, 0, 0, 1, 0]], [[1, 0, 0, 1, 0]])
    sizes = np.concatenate([text, np.concatenate([drawn, seen])], 1)
    sizes = sizes[rng.permutation(3000)]
    capacity = np.array([64, 20, 20, 64, 4, 4])
    left = np.zeros((0, 6), np.int64)
    for size in sizes:
        fits = (left >= size).all(1)
        if not fits.any():
            left, fits = np.vstack([left, capacity]), np.append(fits, True)
        left[np.argmax(fits)] -= size
    assert fewest_rows(sizes, capacity) <= len(left)
