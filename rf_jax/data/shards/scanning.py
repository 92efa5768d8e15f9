"""Reads existing shards once, from start to end, and indexes what can be used."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from absl import logging

from rf_jax.data.image_ops import header_size
from rf_jax.data.records import BadImage, Skips
from rf_jax.data.shards.building import IndexBuilder
from rf_jax.data.shards.index import Index
from rf_jax.data.shards.reader import Format
from rf_jax.data.shards.sample import Sample
from rf_jax.data.shards.set_file import KINDS
from rf_jax.data.tokenizer import parse_tokenizer
from rf_jax.runtime import environment, storage
from rf_jax.runtime.errors import UserError

_ALONE = 2**28  # bytes that one process reads before others would have started
_LOG_EVERY = 10.0  # seconds between progress lines


@dataclass(frozen=True)
class Scanned:
    """A shard: its size in bytes, an index of each of KINDS that it has, what was left out."""

    bytes: int
    indices: Mapping[str, Index]
    skips: Skips

    def __len__(self) -> int:
        return sum(map(len, self.indices.values()))


def samples(format: Format, path: str) -> Iterator[tuple[str, Callable[[], Sample], int, int]]:
    """As `format.scan(path)`; raises UserError in place of ValueError and OSError."""
    try:
        yield from format.scan(path)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'the shard {path} is missing') from None
    except (ValueError, OSError) as error:
        raise UserError(
            f'the shard {path} is {error}; copy it again, or take it out of data.sources'
        ) from None


def scan(format: Format, path: str, tokenizer, max_pixels: int) -> Scanned:
    """Indexes one shard. Raises UserError if it cannot be read to its end."""
    builders = {kind: IndexBuilder(tokenizer) for kind in KINDS}
    skips = Skips()
    for name, read, *where in samples(format, path):
        try:
            found = read()
            sizes = [header_size(image) for image in found.images]
            if max((height * width for height, width in sizes), default=0) > max_pixels:
                skips.add('more than data.max_pixels', name)
                continue
            builders[KINDS[bool(found.messages)]].add(found, sizes, *where)
        except (BadImage, ValueError) as error:
            skips.add_unusable(name, error)
    size = storage.size(path)
    indices = {kind: built.index(size) for kind, built in builders.items() if len(built)}
    return Scanned(size, indices, skips)


def scan_all(
    name: str,
    make_format: Callable[[], Format],
    sizes: Mapping[str, int],
    tokenizer,
    max_pixels: int,
) -> Iterator[tuple[str, Scanned]]:
    """(path, what is in it) of shards, given as {path: bytes}, in any order, with one process per
    CPU core; logs progress under `name`. Raises as `scan`.
    """
    if not sizes:
        return
    started = (make_format, tokenizer.model_bytes, max_pixels)
    workers = min(len(sizes), environment.cores())
    progress = _Progress(name, sizes)
    if workers < 2 or sum(sizes.values()) < _ALONE:
        _start(*started)
        for path in sizes:
            yield path, progress.done(path, _scan(path))
        return
    # A fork of a process that has threads, as JAX's, can hang.
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(workers, spawn, _start, started) as pool:
        futures = {pool.submit(_scan, path): path for path in sizes}
        try:
            for future in as_completed(list(futures)):
                path = futures.pop(future)
                yield path, progress.done(path, future.result())
        except BrokenProcessPool:
            raise UserError(
                f'{name}: a process that indexes shards was killed; is there too little memory? '
                'Start again: what is indexed is kept'
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Progress:
    """Logs how many shards are done, and how long the rest will take."""

    def __init__(self, name: str, sizes: Mapping[str, int]):
        self._name, self._sizes = name, sizes
        self._began = self._logged = time.monotonic()
        self._shards = self._samples = self._bytes = 0

    def done(self, path: str, found: Scanned) -> Scanned:
        self._shards += 1
        self._samples += len(found)
        self._bytes += self._sizes[path]
        now = time.monotonic()
        if now - self._logged > _LOG_EVERY or self._shards == len(self._sizes):
            self._logged, spent = now, now - self._began
            left = spent * (sum(self._sizes.values()) / max(self._bytes, 1) - 1)
            logging.info(
                '%s: indexed %d of %d shards, %d samples, %.0f a second, ETA %.0f s',
                *(self._name, self._shards, len(self._sizes), self._samples),
                *(self._samples / max(spent, 1e-9), left),
            )
        return found


_own: Sequence = ()  # of a worker: format, tokenizer, most pixels


def _start(make_format: Callable[[], Format], model_bytes: bytes, max_pixels: int) -> None:
    global _own
    _own = make_format(), parse_tokenizer(model_bytes), max_pixels


def _scan(path: str) -> Scanned:
    format, tokenizer, max_pixels = _own
    return scan(format, path, tokenizer, max_pixels)
