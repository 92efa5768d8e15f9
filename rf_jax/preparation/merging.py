"""Makes tar files from parts of others: samples sorted by key, copied unchanged."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import numpy as np

from rf_jax.data.shards import index
from rf_jax.data.shards.index import BLOCK
from rf_jax.runtime import storage

_RUN = 2**15  # blocks that are read at once
_END = 2 * BLOCK  # bytes of zeros that end a tar file
_THREADS = 16  # reading waits for a bucket
_HASHED = 2**23  # bytes at a time


@dataclass(frozen=True)
class Part:
    """Samples of one tar file, by ascending offset: SAMPLE[S] and their keys uint64[S]; of
    conversations, IMAGE[M] whose first has the number `first` in the file.
    """

    path: str
    samples: np.ndarray
    keys: np.ndarray
    images: np.ndarray
    first: int = 0


def merge(parts: Sequence[Part], talks: bool, file: BinaryIO) -> tuple[np.ndarray, np.ndarray]:
    """Writes all samples by ascending key to an empty file; (SAMPLE[S], IMAGE[M]) of it.

    `talks`: they are conversations.
    """
    samples = np.concatenate([part.samples for part in parts])
    order = np.argsort(np.concatenate([part.keys for part in parts]), kind='stable')
    blocks = samples['blocks'][order].astype(np.int64)
    places = np.empty(len(samples), np.int64)
    places[order] = np.cumsum(blocks) - blocks
    ends = np.cumsum([len(part.samples) for part in parts])[:-1]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(partial(_copy, file.fileno()), parts, np.split(places, ends)))
    file.truncate(int(blocks.sum()) * BLOCK + _END)
    samples['offset'] = places
    if not talks:
        return samples[order], parts[0].images[:0]
    starts = np.cumsum([0] + [len(part.images) for part in parts])
    firsts = [index.first(p.samples) - p.first + start for p, start in zip(parts, starts)]
    first = np.concatenate(firsts)[order]
    samples, images = samples[order], np.concatenate([part.images for part in parts])
    counts = samples['images'].astype(np.int64)
    numbers = np.cumsum(counts) - counts
    images = images[np.repeat(first - numbers, counts) + np.arange(counts.sum())]
    index.set_first(samples, numbers)
    return samples, images


def _copy(file: int, part: Part, places: np.ndarray) -> None:
    for start, end in _runs(part.samples):
        rows = part.samples[start:end]
        begin = int(rows['offset'][0])
        until = int(rows['offset'][-1]) + int(rows['blocks'][-1])
        data = memoryview(storage.read_range(part.path, begin * BLOCK, (until - begin) * BLOCK))
        places_here = places[start:end].tolist()
        for offset, blocks, place in zip(
            rows['offset'].tolist(), rows['blocks'].tolist(), places_here
        ):
            at = (offset - begin) * BLOCK
            os.pwrite(file, data[at : at + blocks * BLOCK], place * BLOCK)


def _runs(samples: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of samples that are read together."""
    offsets = samples['offset'].astype(np.int64)
    start = 0
    while start < len(samples):
        end = int(np.searchsorted(offsets, offsets[start] + _RUN))
        yield start, max(end, start + 1)
        start = max(end, start + 1)


def digest(file: BinaryIO) -> str:
    """BLAKE2b of a file, 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    file.seek(0)
    while data := file.read(_HASHED):
        found.update(data)
    return found.hexdigest()
