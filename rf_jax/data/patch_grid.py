"""Rows and columns of an image's patches, and of the groups of patches that each representation
token covers; sizes are in patches, `pool` is the side of a group: 1, 2 (paper) or 4.

Arrays are cached, since every example needs them again, and read-only.
"""

import functools

import numpy as np

_cached = functools.lru_cache(maxsize=4096)  # grids of all aspect ratios at several resolutions


def unit(pool: int) -> int:
    """Height and width in patches are multiples of this: the encoder's connector pools 2x2."""
    return max(2, pool)


@_cached
def patch_cells(height: int, width: int, pool: int = 2) -> np.ndarray:
    """int32[P, 2]: row and column of every patch, in the order in which they are stored.

    2x2 groups in raster order, and patches in raster order within a group: token n covers patches
    4n .. 4n+3. For pool 4 the groups are grouped 2x2 once more.
    """
    cells = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    keys = [cells]
    for side in (2, 4):
        if side <= unit(pool):
            keys.insert(0, cells // side)
    order = np.lexsort(np.concatenate(keys, 1).T[::-1])
    return _read_only(cells[order].astype(np.int32))


@_cached
def patch_coords(height: int, width: int, pool: int = 2) -> np.ndarray:
    """float32[P, 2]: the centre of each of `patch_cells`, (row, column) in [-1, 1] of the image."""
    centres = (patch_cells(height, width, pool) + 0.5) / (height, width)
    return _read_only((centres * 2 - 1).astype(np.float32))


@_cached
def group_cells(height: int, width: int, pool: int = 2) -> np.ndarray:
    """int32[N, 2]: row and column of every group of pool x pool patches, raster order."""
    cells = np.stack(np.mgrid[: height // pool, : width // pool], -1).reshape(-1, 2)
    return _read_only(cells.astype(np.int32))


@_cached
def stored_groups(height: int, width: int, pool: int) -> np.ndarray:
    """int64[N]: index among the stored groups of each group of `group_cells`; single patches
    (pool 1) are stored in 2x2 groups too.
    """
    cells = patch_cells(height, width, pool)[:: pool**2] // pool
    return _read_only(np.lexsort(cells.T[::-1]))  # for raster cell i, its index in storage


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
