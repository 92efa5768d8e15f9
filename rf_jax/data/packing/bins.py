"""Packing: samples of known sizes into rows of fixed capacities, all streams full at once.

Most samples are dealt like cards, a block at a time, the largest first, to the rows with most room
for them: that is quick, and rows end about equally full in every stream. The last few of each row,
which for small rows are all, go one by one to the row that they fill best. All arithmetic is in
integers: the same on every machine.
"""

import math

import numpy as np

_UNIT = 2**20  # an empty row's room, in each dimension
_BLOCKS = 8  # a block is this part of the rows: smaller ones balance better and take longer
_FITTED = 8  # samples of a row that are not dealt but fitted
_GROUP = 512  # rows among which the best is sought; more fill better and take longer


def deal(sizes: np.ndarray, capacity: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Packs samples into `rows` rows: (row of each, -1 where none has room, room left).

    sizes int[S, d], capacity int[d] -> int64[S], int64[rows, d]. A block of samples goes to the
    rows whose room has the largest dot product with its mean demand (Panigrahy et al., "Heuristics
    for Vector Bin Packing", 2011), and of the block the largest sample to the row with most room,
    in the dimension where the block's samples differ most. Raises ValueError when a sample exceeds
    an empty row.
    """
    sizes, capacity = np.asarray(sizes, np.int64), np.asarray(capacity, np.int64)
    too_big = (sizes > capacity).any(1)
    if too_big.any():
        at = int(np.argmax(too_big))
        raise ValueError(f'sample {at} of {sizes[at]} exceeds the capacity {capacity} of a row')
    unit = _UNIT // np.maximum(capacity, 1)
    shares = sizes * unit
    room = np.tile(capacity, (rows, 1))
    found = np.full(len(sizes), -1, np.int64)
    order = np.argsort(-shares.sum(1), kind='stable')
    block = max(1, rows // _BLOCKS)
    dealt = max(0, len(order) - _FITTED * rows)
    for first in range(0, dealt, block):
        which = order[first : min(first + block, dealt)]
        at = _matched(shares[which], room * unit)
        fits = (room[at] >= sizes[which]).all(1)
        found[which[fits]] = at[fits]
        room[at[fits]] -= sizes[which[fits]]
    rest = np.flatnonzero(found < 0)
    # By halving sizes: of equals in any order, as strictly falling ones would gather long texts.
    halvings = np.frexp(shares[rest].max(1, initial=0).astype(float))[1]
    rest = rest[np.argsort(-halvings, kind='stable')]
    groups = -(-rows // _GROUP)
    for group in range(groups):
        part = rest[group::groups]
        at = fit(sizes[part], room[group::groups], capacity)
        found[part] = np.where(at < 0, -1, group + groups * at)
    if groups > 1:
        rest = rest[found[rest] < 0]
        found[rest] = fit(sizes[rest], room, capacity)
    _fill_empty(sizes, order[::-1], found, room)
    return found, room


def _fill_empty(sizes, smallest_first, found, room) -> None:
    """Moves the smallest samples of rows that have several to rows that have none."""
    placed = smallest_first[found[smallest_first] >= 0]
    moved = placed
    while len(moved):
        held = np.bincount(found[placed], minlength=len(room))
        empty = np.flatnonzero(held == 0)
        several = placed[held[found[placed]] > 1]
        # One of each row, the first that comes.
        firsts = np.sort(np.unique(found[several], return_index=True)[1])
        moved = several[firsts[: len(empty)]]
        empty = empty[: len(moved)]
        room[found[moved]] += sizes[moved]
        room[empty] -= sizes[moved]
        found[moved] = empty


def fit(sizes: np.ndarray, room: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Best fit, one sample after another: the row of each, -1 where none has room.

    The best row is the one that is fullest in what the sample takes. Takes from `room`.
    """
    left = np.ascontiguousarray(room.T)
    unit = (_UNIT // np.maximum(capacity, 1))[:, None]
    weighted = left * unit
    found = np.full(len(sizes), -1, np.int64)
    for sample, size in enumerate(sizes):
        takes = np.flatnonzero(size)
        fits = np.flatnonzero((left[takes] >= size[takes, None]).all(0))
        if len(fits):
            at = fits[np.argmin(weighted[takes][:, fits].sum(0))]
            found[sample] = at
            left[:, at] -= size
            weighted[:, at] -= size * unit[:, 0]
    room[:] = left.T
    return found


def _matched(shares: np.ndarray, room: np.ndarray) -> np.ndarray:
    """A row of its own for each of a block's samples, int64[S]; there are at least S rows."""
    count = len(shares)
    demand = shares.sum(0) // count
    top = np.argsort(-(room @ demand), kind='stable')[:count]
    differ = count * (shares * shares).sum(0) - shares.sum(0) ** 2
    by = int(np.argmax(differ))
    found = np.empty(count, np.int64)
    found[np.argsort(-shares[:, by], kind='stable')] = top[
        np.argsort(-room[top, by], kind='stable')
    ]
    return found


def fewest_rows(sizes: np.ndarray, capacity: np.ndarray) -> int:
    """The least number of rows found into which `deal` brings all samples, but three of thousands.

    Those are odd: rows for their sake would not be full.
    """
    least = max(1, int((-(-sizes.sum(0) // np.maximum(capacity, 1))).max()))
    low, high = least - 1, least  # `low` does not suffice
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
    return int((deal(sizes, capacity, rows)[0] < 0).sum()) <= min(3, len(sizes) // 1000)


def recommended(sizes: np.ndarray, tokens: int, lean=(100, 100, 100, 100), group=4) -> np.ndarray:
    """Capacities int64[6] (`layout.SIZES`) of a row of `tokens` tokens that suit the samples.

    Streams in the ratio of the mean demand, each taken as `lean` percent of it, so that all fill at
    once, pixels in whole groups of `group` patches, and never below the largest sample; pictures,
    whose places cost next to nothing, a quarter above their mean number.
    """
    unit = 8 if tokens >= 8192 else 4
    unit = np.array([unit, unit, math.lcm(unit, group)])  # of vision, representation, pixels
    streams = sizes[:, :4].sum(0) * np.array(lean) // 100
    total = int(streams.sum())
    found = np.zeros(6, np.int64)
    # Text takes what rounding leaves: its demand is the one that has no steps.
    found[1:4] = (2 * streams[1:] * tokens + unit * total) // (2 * unit * total) * unit
    found[1:4] = np.maximum(found[1:4], -(-sizes[:, 1:4].max(0) // unit) * unit)
    found[0] = max(tokens - found[1:4].sum(), sizes[:, 0].max())
    pictures = sizes[:, 4:].sum(0)
    found[4:] = np.where(pictures > 0, 5 * pictures * tokens // (4 * total) + 2, 0)
    return found
