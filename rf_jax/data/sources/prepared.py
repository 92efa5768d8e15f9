"""A set that `python -m rf_jax.prepare` made: shards with an index, on a disk or in a bucket."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache

from rf_jax.data.records import IndexedSource
from rf_jax.data.shards import index, set_file
from rf_jax.data.shards.index import Index
from rf_jax.data.shards.reader import Shards
from rf_jax.data.shards.tar_format import Tar
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError, require

_IN_ORDER = 64  # megabytes: samples that are read one after the other need one block at a time


class PreparedSource(IndexedSource):
    """`prepared:/path`, the folder of a `set.json`. Raises UserError."""

    def __init__(self, path: str, max_pixels: int):
        del max_pixels  # images were resized
        self.name = f'prepared:{path}'
        require(path, 'data.sources: prepared: needs a folder, as in prepared:/path/to/set')
        self._folder = str(paths.anywhere(path, 'data.sources')).rstrip('/')
        try:
            self._set = set_file.read(self._folder)
        except UserError as error:
            raise UserError(f'data.sources: {self.name}: {error}') from None
        self.skipped = dict(self._set.left_out)
        self.tokenizer = f'{self._folder}/{self._set.tokenizer}'
        self.open = lru_cache(1)(self._open)

    def texts(self, count: int) -> Iterator[str]:
        """Texts of the first `count` samples of each kind."""
        for shards in self._shards(_IN_ORDER).values():
            for number in range(min(count, len(shards))):
                yield from shards.read(number).texts()

    def _open(self, tokenizer, megabytes: int) -> Mapping[str, Shards]:
        if tokenizer.checksum != self._set.checksum:
            raise UserError(
                f'{self.name}: its text was counted with the tokenizer {self._set.checksum[:16]}, '
                f'but the run has {tokenizer.checksum[:16]} (SHA-256): set '
                f'tokenizer.path={self.tokenizer}, or prepare the set with --tokenizer'
            )
        return self._shards(megabytes)

    def _shards(self, megabytes: int) -> dict[str, Shards]:
        found, tars = {}, Tar(megabytes)
        for kind, shards in self._set.shards.items():
            sizes = {f'{self._folder}/{shard.name}': shard.bytes for shard in shards}
            found[kind] = Shards(
                list(sizes),
                [shard.samples for shard in shards],
                lambda path, sizes=sizes: _open_index(path, sizes[path]),
                tars,
            )
        return {kind: shards for kind, shards in found.items() if len(shards)}

    def summary(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for kind in set_file.KINDS:
            for shard in self._set.shards[kind]:
                digest.update(repr((kind, shard)).encode())
        total = sum(map(self._set.samples, set_file.KINDS))
        left_out = sum(self.skipped.values())
        return f'{total} samples ({left_out} left out, digest {digest.hexdigest()})'


def _open_index(path: str, size: int) -> Index:
    found = index.read(index.path_of(path))
    require(
        found.shard_bytes == size,
        f'{index.path_of(path)} is of a shard of {found.shard_bytes:,} bytes, but set.json says '
        f'{size:,}: it is older or newer than its shard; prepare the set again',
    )
    return found
