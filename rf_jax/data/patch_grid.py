"""Rows and columns of a picture's patches and of the groups that one representation token stands
for; sizes are in patches, `pool` is the side of a group: 1, 2 (paper) or 4.

Arrays are kept, as every sample asks for them again, and cannot be written to.
"""

import functools

import numpy as np

_kept = functools.lru_cache(maxsize=4096)  # grids of all aspects of several resolutions


def unit(pool: int) -> int:
    """What height and width in patches are multiples of: the encoder's connector pools 2x2."""
    return max(2, pool)


@_kept
def patch_cells(height: int, width: int, pool: int = 2) -> np.ndarray:
    """int32[P, 2]: row and column of every patch as they are stored.

    2x2 groups in raster order, and in raster order within: patches 4n .. 4n+3 lie under token n.
    For pool 4 the groups stand in such groups again.
    """
    cells = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    keys = [cells]
    for side in (2, 4):
        if side <= unit(pool):
            keys.insert(0, cells // side)
    order = np.lexsort(np.concatenate(keys, 1).T[::-1])
    return _sealed(cells[order].astype(np.int32))


@_kept
def group_cells(height: int, width: int, pool: int = 2) -> np.ndarray:
    """int32[N, 2]: row and column of every group of pool x pool patches, raster order."""
    cells = np.stack(np.mgrid[: height // pool, : width // pool], -1).reshape(-1, 2)
    return _sealed(cells.astype(np.int32))


@_kept
def stored_groups(height: int, width: int, pool: int) -> np.ndarray:
    """int64[N]: which of the stored groups each of `group_cells` is; single patches stand in
    2x2 groups all the same.
    """
    cells = patch_cells(height, width, pool)[:: pool**2] // pool
    return _sealed(np.lexsort(cells.T[::-1]))  # of raster cell i, its place among those stored


def _sealed(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
