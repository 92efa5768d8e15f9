"""The indices of existing shards, kept beside them or, if that folder is not writable, in a folder
of the user's.

Beside 00000.tar are 00000.tar.KEY.captions.index and 00000.tar.KEY.conversations.index, for the
kinds of samples that it has, and 00000.tar.KEY.json, which is written last: a shard without it
counts as not indexed. KEY is a digest of what the indices depend on apart from the shard.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from absl import logging

from rf_jax.data.shards import index
from rf_jax.data.shards.index import Index
from rf_jax.data.shards.scanning import Scanned
from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError

_FORMAT = 2  # increase it when samples are read in another way
ELSEWHERE = '~/.cache/rf_jax/indices'


@dataclass(frozen=True)
class Entry:
    """What is known of an indexed shard. `bytes`: its size. `samples`: of each kind.
    `index_bytes`: size of the index of each kind. `left_out`, `examples`: as in `records.Skips`.
    """

    bytes: int
    samples: Mapping[str, int]
    index_bytes: Mapping[str, int]
    left_out: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, list[str]] = field(default_factory=dict)


class Kept:
    """`depends_on`: what the indices depend on beside the shards; `elsewhere`: the folder to use
    where that of the shards cannot be written.
    """

    def __init__(self, depends_on: str, elsewhere: str | os.PathLike):
        self._depends_on = f'format {_FORMAT}, {depends_on}'
        self._key = hashlib.blake2b(self._depends_on.encode(), digest_size=6).hexdigest()
        self._elsewhere = os.path.expanduser(elsewhere)
        self._beside = True  # whether the folder of the shards can be written, as far as is known
        self._found: dict[str, str] = {}  # of each shard, the path of what is kept up to KEY

    def find(self, shard: str, size: int) -> Entry | None:
        """What was kept of a shard of this size; None if it must be scanned.

        Logs a line if it was indexed before and has changed, or its index is damaged.
        """
        found, wrong = self._look(shard, size)
        if wrong:
            logging.warning('%s; indexing it again', wrong)
        return found

    def _look(self, shard: str, size: int) -> tuple[Entry | None, str]:
        """(what was kept of a shard of this size, what is wrong with it if that is of no use)."""
        wrong = ''
        for base in self._bases(shard):
            try:
                found = self._read(base)
                if found.bytes == size and not _older(f'{base}.json', shard):
                    self._found[shard] = base
                    return found, ''
                wrong = f'{shard} has changed since it was indexed'
            except FileNotFoundError:
                continue
            except UserError:  # a ValueError too: no permission, ...
                raise
            except (OSError, ValueError, KeyError, TypeError) as error:
                wrong = f'the index of {shard} is damaged: {error}'
        return None, wrong

    def keep(self, shard: str, found: Scanned) -> Entry:
        """Writes the index of a shard, complete or not at all, unless another run has done so."""
        there, _ = self._look(shard, found.bytes)
        if there:
            return there
        files = {kind: each.to_bytes() for kind, each in found.indices.items()}
        entry = Entry(
            found.bytes,
            {kind: len(each) for kind, each in found.indices.items()},
            {kind: len(data) for kind, data in files.items()},
            dict(found.skips.counts),
            found.skips.examples,
        )
        last = json.dumps({'depends_on': self._depends_on, **asdict(entry)}, indent=1).encode()
        named = {f'.{kind}{index.SUFFIX}': data for kind, data in files.items()} | {'.json': last}
        beside, elsewhere = self._bases(shard)
        if self._beside:
            try:
                self._write(shard, beside, named)
                return entry
            except Unavailable:  # no refusal; other hosts cannot see what is elsewhere
                raise
            except (OSError, UserError) as error:
                self._beside = False
                logging.warning(
                    'no index can be kept in %s (%s); it goes to %s',
                    *(os.path.dirname(shard), error, self._elsewhere),
                )
        self._write(shard, elsewhere, named)
        return entry

    def _write(self, shard: str, base: str, named: Mapping[str, bytes]) -> None:
        for ending, data in named.items():
            storage.write(base + ending, data)
        self._found[shard] = base

    def open(self, shard: str, kind: str) -> Index:
        """The index of a shard that `find` or `keep` gave an entry for. Raises UserError."""
        path = f'{self._found[shard]}.{kind}{index.SUFFIX}'
        # As many indices of a bucket's shards are held as may not be open files, wherever they lie.
        found = index.read(path, mapped=storage.is_local(shard))
        _check_unchanged(shard, found)
        return found

    def _bases(self, shard: str) -> tuple[str, str]:
        folder, name = os.path.split(shard)
        digest = hashlib.blake2b(folder.encode(), digest_size=6).hexdigest()
        return f'{shard}.{self._key}', f'{self._elsewhere}/{digest}/{name}.{self._key}'

    def _read(self, base: str) -> Entry:
        found = json.loads(storage.read(f'{base}.json'))
        if found.pop('depends_on') != self._depends_on:
            raise ValueError('it was made for other settings')
        entry = Entry(**found)
        for kind, expected in entry.index_bytes.items():
            path = f'{base}.{kind}{index.SUFFIX}'
            try:
                size = storage.size(path)
            except FileNotFoundError:
                raise ValueError(f'{path} is missing') from None
            if size != expected:
                raise ValueError(f'{path} is truncated: {size:,} bytes, expected {expected:,}')
        return entry


def _check_unchanged(shard: str, found: Index) -> None:
    try:
        size = storage.size(shard)
    except FileNotFoundError:
        raise UserError(f'the shard {shard} is gone since the start of the run') from None
    if size != found.shard_bytes:
        raise UserError(
            f'the shard {shard} has changed since it was indexed ({size:,} bytes, then '
            f'{found.shard_bytes:,}); start again, which indexes it again'
        )


def _older(entry: str, shard: str) -> bool:
    """Whether an entry was written before its shard, as far as that can be told: a shard of another
    time may have the same size.
    """
    if not storage.is_local(shard) or not storage.is_local(entry):
        return False
    return Path(entry).stat().st_mtime_ns < Path(shard).stat().st_mtime_ns
