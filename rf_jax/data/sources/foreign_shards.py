"""Existing shards, read in place; each is indexed when it is first used."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

from rf_jax.data.records import BadImage, IndexedSource, Skips
from rf_jax.data.shards import patterns, scanning
from rf_jax.data.shards.kept import ELSEWHERE, Entry, Kept
from rf_jax.data.shards.reader import Format, Shards
from rf_jax.data.shards.set_file import KINDS
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_THREADS = 32  # they wait for the disk or the bucket
_SPREAD = 16  # shards that texts are read from


class ForeignShards(IndexedSource):
    """Shards of one format with random access, once `open` has indexed those that are new.

    `kind`, `argument`: of an entry `kind:argument` of data.sources, where the argument is as in
    `patterns.shards` and `ending` names the shards of a folder. Raises UserError if there are none.
    """

    _make_format: Callable[[int], Format]  # with megabytes for what was read from a bucket
    _read_as: str  # all that a sample depends on beside its shard

    tokenizer = ''
    caches_metadata = True  # one process indexes, the others read what it kept

    def __init__(self, kind: str, argument: str, max_pixels: int, ending: str):
        self.name = f'{kind}:{argument}'
        self.skipped: dict[str, int] = {}
        self._max_pixels = max_pixels
        self._entries: dict[str, Entry] = {}
        try:
            self._paths = patterns.shards(argument, ending)
        except (ValueError, OSError) as error:
            raise UserError(f'data.sources: {self.name}: {error}') from None
        self._sizes = self._find_sizes(ending)
        self.open = lru_cache(1)(self._open)

    def _find_sizes(self, ending: str) -> dict[str, int]:
        """{path: bytes} of all shards."""

        def size(path):
            try:
                return None if os.path.isdir(path) else storage.size(path)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(self._paths, pool.map(size, self._paths)))
        missing = [path for path, each in found.items() if each is None]
        if missing or not found:
            raise UserError(
                f'data.sources: {self.name}: {len(missing)} of {len(found)} shards are missing'
                f'{f", such as {missing[0]}" if missing else ""}; expected a folder with {ending}, '
                'or a path like /data/{00000..00099}.tar or /data/*.tar'
            )
        return found

    def texts(self, count: int) -> Iterator[str]:
        """Text of about `count` samples from all over the shards, without an index: a corpus for a
        tokenizer.
        """
        chosen = self._paths[:: -(-len(self._paths) // _SPREAD)]
        format = self._make_format(0)
        for path in chosen:
            some = itertools.islice(scanning.samples(format, path), -(-count // len(chosen)))
            for _, read, *_ in some:
                with contextlib.suppress(ValueError, BadImage):  # counted when it is indexed
                    yield from read().texts()

    def _open(
        self, tokenizer, megabytes: int, elsewhere: str | os.PathLike = ELSEWHERE
    ) -> dict[str, Shards]:
        """`elsewhere`: the folder for indices where that of the shards cannot be written.

        Raises UserError if a shard cannot be read to its end, or nothing can be used.
        """
        kept = Kept(self._depends_on(tokenizer), elsewhere)
        with ThreadPoolExecutor(_THREADS) as pool:
            self._entries = dict(zip(self._sizes, pool.map(kept.find, *zip(*self._sizes.items()))))
        new = {path: self._sizes[path] for path, entry in self._entries.items() if not entry}
        make = partial(self._make_format, megabytes)
        for path, found in scanning.scan_all(self.name, make, new, tokenizer, self._max_pixels):
            self._entries[path] = kept.keep(path, found)
        skips = Skips()
        for entry in self._entries.values():
            skips.add_all(entry.left_out, entry.examples)
        self.skipped = skips.counts
        counts = {kind: self._counts(kind) for kind in KINDS}
        if not any(counts.values()):
            raise UserError(f'data.sources: {self.name} has no usable sample; skipped: {skips}')
        skips.log(self.name, sum(sum(each.values()) for each in counts.values()))
        return {
            kind: Shards(list(each), list(each.values()), partial(kept.open, kind=kind), make())
            for kind, each in counts.items()
            if each
        }

    def summary(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for path, size in self._sizes.items():
            digest.update(repr((os.path.basename(path), size)).encode())
        total = sum(self._sizes.values())
        return f'{len(self._sizes)} shards of {total:,} bytes (digest {digest.hexdigest()})'

    def _counts(self, kind: str) -> dict[str, int]:
        """{path: samples of a kind} of the shards that have some."""
        counts = {path: entry.samples.get(kind, 0) for path, entry in self._entries.items()}
        return {path: count for path, count in counts.items() if count}

    def _depends_on(self, tokenizer) -> str:
        return f'{self._read_as}, tokenizer {tokenizer.checksum}, at most {self._max_pixels} pixels'
