"""Bin packing: examples of known sizes into rows of fixed capacities, filling all streams alike.

Most examples are packed in blocks, the largest first, each block into the rows with most room for
it, one example per row: that is fast, and rows end up about equally full in every stream. The last
few examples of each row (all of them if rows are small) are packed one by one by best fit. All
arithmetic is in integers, so the result is the same on every machine.
"""

import math

import numpy as np

_UNIT = 2**20  # room of an empty row in each dimension, once scaled
_BLOCKS = 8  # a block is 1 / 8 of the rows: smaller blocks balance better and take longer
_ONE_BY_ONE = 8  # examples per row that are packed one by one
_GROUP = 512  # rows that best fit chooses from; more rows fill better and take longer
_NEVER = np.iinfo(np.int64).max


def pack(sizes: np.ndarray, capacity: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs examples into `rows` rows: (row of each, -1 if none has room; room left in the rows).

    sizes int[S, d], capacity int[d] -> int64[S], int64[rows, d]. A block of examples goes to the
    rows whose room has the largest dot product with its mean size (Panigrahy et al., "Heuristics
    for Vector Bin Packing", 2011). Within the block, larger examples go to rows with more room, by
    the dimension in which the block's examples differ most. Raises ValueError when an example
    exceeds an empty row.
    """
    sizes, capacity = np.asarray(sizes, np.int64), np.asarray(capacity, np.int64)
    too_big = (sizes > capacity).any(1)
    if too_big.any():
        at = int(np.argmax(too_big))
        raise ValueError(
            f'example {at} of size {sizes[at]} exceeds the capacity {capacity} of a row'
        )
    unit = _UNIT // np.maximum(capacity, 1)
    shares = sizes * unit
    room = np.tile(capacity, (rows, 1))
    row_of = np.full(len(sizes), -1, np.int64)
    order = np.argsort(-shares.sum(1), kind='stable')
    block = max(1, rows // _BLOCKS)
    in_blocks = max(0, len(order) - _ONE_BY_ONE * rows)
    for first in range(0, in_blocks, block):
        which = order[first : min(first + block, in_blocks)]
        at = _matched(shares[which], room * unit)
        fits = (room[at] >= sizes[which]).all(1)
        row_of[which[fits]] = at[fits]
        room[at[fits]] -= sizes[which[fits]]
    rest = np.flatnonzero(row_of < 0)
    # By powers of two: strictly falling sizes would put long texts into the same rows.
    halvings = np.frexp(shares[rest].max(1, initial=0).astype(float))[1]
    rest = rest[np.argsort(-halvings, kind='stable')]
    groups = -(-rows // _GROUP)
    for group in range(groups):
        part = rest[group::groups]
        at = best_fit(sizes[part], room[group::groups], capacity)
        row_of[part] = np.where(at < 0, -1, group + groups * at)
    if groups > 1:
        rest = rest[row_of[rest] < 0]
        row_of[rest] = best_fit(sizes[rest], room, capacity)
    _fill_empty(sizes, order[::-1], row_of, room)
    return row_of, room


def _fill_empty(sizes, smallest_first, row_of, room) -> None:
    """Moves the smallest examples of rows that hold several into the rows that hold none."""
    placed = smallest_first[row_of[smallest_first] >= 0]
    moved = placed
    while len(moved):
        held = np.bincount(row_of[placed], minlength=len(room))
        empty = np.flatnonzero(held == 0)
        several = placed[held[row_of[placed]] > 1]
        # One example from each row, its smallest.
        firsts = np.sort(np.unique(row_of[several], return_index=True)[1])
        moved = several[firsts[: len(empty)]]
        empty = empty[: len(moved)]
        room[row_of[moved]] += sizes[moved]
        room[empty] -= sizes[moved]
        row_of[moved] = empty


def best_fit(sizes: np.ndarray, room: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Best fit, one example after another: the row of each, -1 where none has room.

    The best row is the fullest one in the dimensions that the example uses. Updates `room`.
    """
    left = np.ascontiguousarray(room.T)
    unit = _UNIT // np.maximum(capacity, 1)
    # Few sets of dimensions are in use: the room that each row has in them is kept up to date.
    used, kind = np.unique(sizes > 0, axis=0, return_inverse=True)
    weighted = (used * unit) @ left  # [sets, rows]
    shares = (sizes * unit) @ used.T  # what each example takes of it, [S, sets]
    dimensions = [np.flatnonzero(each).tolist() for each in used]
    every = np.ones(len(room), bool)
    row_of = np.full(len(sizes), -1, np.int64)
    for example, (of, size) in enumerate(zip(kind.reshape(-1).tolist(), sizes.tolist())):
        fits = every
        for d in dimensions[of]:
            fits = fits & (left[d] >= size[d])
        at = int(np.where(fits, weighted[of], _NEVER).argmin())
        if fits[at]:
            row_of[example] = at
            left[:, at] -= sizes[example]
            weighted[:, at] -= shares[example]
    room[:] = left.T
    return row_of


def _matched(shares: np.ndarray, room: np.ndarray) -> np.ndarray:
    """A different row for each example of a block, int64[S]; there are at least S rows."""
    count = len(shares)
    mean = shares.sum(0) // count
    top = np.argsort(-(room @ mean), kind='stable')[:count]
    differ = count * (shares * shares).sum(0) - shares.sum(0) ** 2
    by = int(np.argmax(differ))
    chosen = np.empty(count, np.int64)
    chosen[np.argsort(-shares[:, by], kind='stable')] = top[
        np.argsort(-room[top, by], kind='stable')
    ]
    return chosen


def fewest_rows(sizes: np.ndarray, capacity: np.ndarray) -> int:
    """The smallest number of rows found that `pack` needs for all examples, but a few.

    Up to three, and no more than one in a thousand, may be left over: they have unusual sizes, and
    rows added for them would stay nearly empty.
    """
    least = max(1, int((-(-sizes.sum(0) // np.maximum(capacity, 1))).max()))
    low, high = least - 1, least  # `low` rows are too few
    while not _suffices(sizes, capacity, high):
        low, high = high, high + max(1, 2 * (high - least), least // 256)
    while high - low > max(1, least // 512):
        middle = (low + high) // 2
        if _suffices(sizes, capacity, middle):
            high = middle
        else:
            low = middle
    return high


def _suffices(sizes: np.ndarray, capacity: np.ndarray, rows: int) -> bool:
    return int((pack(sizes, capacity, rows)[0] < 0).sum()) <= min(3, len(sizes) // 1000)


def recommended_capacity(
    sizes: np.ndarray, tokens: int, lean=(100, 100, 100, 100), group=4
) -> np.ndarray:
    """Capacities int64[6] (`layout.SIZES`) of a row of `tokens` tokens that suit the examples.

    Streams share the row in the ratio of their mean sizes, each scaled by `lean` percent, so that
    all fill up together; pixels come in whole groups of `group` patches, and no stream is smaller
    than its largest example. Room for images costs next to nothing: a quarter above their mean.
    """
    unit = 8 if tokens >= 8192 else 4
    unit = np.array([unit, unit, math.lcm(unit, group)])  # of vision, representation, pixels
    streams = sizes[:, :4].sum(0) * np.array(lean) // 100
    total = int(streams.sum())
    found = np.zeros(6, np.int64)
    # Text gets what rounding leaves over, since its capacity need not be a multiple of anything.
    found[1:4] = (2 * streams[1:] * tokens + unit * total) // (2 * unit * total) * unit
    found[1:4] = np.maximum(found[1:4], -(-sizes[:, 1:4].max(0) // unit) * unit)
    found[0] = max(tokens - found[1:4].sum(), sizes[:, 0].max())
    images = sizes[:, 4:].sum(0)
    found[4:] = np.where(images > 0, 5 * images * tokens // (4 * total) + 2, 0)
    return found
