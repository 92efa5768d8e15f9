"""Packing: draws of known sizes into rows of fixed capacities, all streams full at once.

Rows are filled together, largest draws first, as cards are dealt: a block of draws at a time goes
to the rows that have most room for it, so that all rows end about equally full in every stream.
All arithmetic is in integers: the same on every machine.
"""

import numpy as np

_UNIT = 2**20  # an empty row's room, in each dimension
_BLOCKS = 8  # a block is this part of the rows: smaller ones balance better and take longer


def deal(
    sizes: np.ndarray, capacity: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deals samples into `rows` rows: (row of each, -1 where none has room, room left).

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
    block = max(1, rows // _BLOCKS)
    order, ends = _dealing_order(shares)
    for start, stop in zip([0, *ends], ends):
        for first in range(start, stop, block):
            which = order[first : min(first + block, stop)]
            at = _matched(shares[which], room * unit)
            fits = (room[at] >= sizes[which]).all(1)
            found[which[fits]] = at[fits]
            room[at[fits]] -= sizes[which[fits]]
    refused = order[found[order] < 0]
    found[refused] = place(sizes[refused], room, capacity)
    return found, room


def place(sizes: np.ndarray, room: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """Best fit, one sample after another: its row, -1 where none has room; takes from `room`."""
    unit = _UNIT // np.maximum(capacity, 1)
    found = np.full(len(sizes), -1, np.int64)
    for sample, size in enumerate(sizes):
        fits = np.flatnonzero((room >= size).all(1))
        if len(fits):
            # The row that is left fullest in what the sample takes.
            found[sample] = fits[np.argmin((room[fits] * unit) @ (size > 0))]
            room[found[sample]] -= size
    return found


def _dealing_order(shares: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(samples in the order of dealing, where each group ends).

    A group takes of the same dimensions, as all pictures to draw do; the group with the largest
    samples goes first, and in a group the largest sample. Equal samples keep their order.
    """
    pattern = (shares > 0) @ (1 << np.arange(shares.shape[1]))
    largest = shares.max(1, initial=0)
    _, group = np.unique(pattern, return_inverse=True)
    counts = np.bincount(group)
    sums = np.zeros(len(counts), np.int64)
    np.add.at(sums, group, largest)
    rank = np.argsort(np.argsort(-(sums // np.maximum(counts, 1)), kind='stable'))
    order = np.lexsort((-largest, rank[group]))
    return order, np.cumsum(counts[np.argsort(rank)]).tolist()


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
    """The least number of rows found into which `deal` brings every sample."""
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
    return bool((deal(sizes, capacity, rows)[0] >= 0).all())
