"""The size to which an image is resized: of one image, and of arrays of them."""

import functools

import numpy as np

from rf_jax.data import image_ops, patch_grid, spans


def image_size(height: int, width: int, config, longest: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels to which an image is resized for training and evaluation.

    `longest` defaults to the largest of `data.sizes`. Small images are not enlarged beyond the
    smallest entry.
    """
    data, unit = config.data, patch_grid.unit(spans.pool_of(config))
    sizes = [size for size, _ in data.sizes]
    longest = min(longest or max(sizes), max(height, width, min(sizes)))
    return image_ops.target_size(height, width, longest, unit * data.patch_size)


def pick(chance: float, sizes) -> int:
    """The entry of `data.sizes` for a number in [0, 1): the longest side in pixels."""
    chance *= sum(weight for _, weight in sizes)
    for size, weight in sizes:
        if chance < weight:
            return size
        chance -= weight
    return sizes[-1][0]


def picks(chance: np.ndarray | float, sizes) -> np.ndarray | np.int64:
    """int64[S]: as `pick`, for an array; or for one number."""
    longest, ends = _longest_and_ends(tuple(map(tuple, sizes)))
    return longest[np.searchsorted(ends, chance)]


@functools.cache
def _longest_and_ends(sizes: tuple) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([weight for _, weight in sizes], dtype=float)
    return np.array([size for size, _ in sizes]), ends / ends[-1]


def patches(
    height: np.ndarray, width: np.ndarray, longest: np.ndarray, data, pool: int
) -> np.ndarray:
    """int64[S]: patches of images resized as `image_size` does."""
    smallest = min(size for size, _ in data.sizes)
    short, long = np.minimum(height, width), np.maximum(height, width)
    unit = patch_grid.unit(pool)
    most = np.minimum(longest, np.maximum(long, smallest)).astype(np.int64)
    units = most // (unit * data.patch_size)
    exact = units * short / long
    below, above = np.maximum(np.floor(exact), 1), np.maximum(np.ceil(exact), 1)
    nearest = np.where(exact * exact <= below * above, below, above)
    return unit**2 * units * nearest.astype(np.int64)
