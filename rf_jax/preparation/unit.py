"""A unit of work: a part of the input that is read from start to end, independently of the rest."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from rf_jax.data.shards import patterns
from rf_jax.data.shards.sample import Sample
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_THREADS = 32
_SLICE = 2_000  # examples of a unit


@dataclass(frozen=True)
class Unit:
    """`entry`: number of its entry of --source, `kind` before the colon. `path`: of its file, or
    what follows the colon. `name`: tells it from the others of the entry, wherever the input is
    stored. `bytes`: of its file. `first`, `last`: its examples, of a part of a source.
    """

    entry: int
    kind: str
    path: str
    name: str
    bytes: int = 0
    first: int = 0
    last: int = 0

    @property
    def id(self) -> str:
        """16 hexadecimal digits, which differ for another unit or a file of another size."""
        text = f'{self.entry}\0{self.name}\0{self.bytes}\0{self.first}\0{self.last}'
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Input(Protocol):
    """One kind of --source."""

    def units(self, entry: int, argument: str) -> list[Unit]:
        """In a fixed order. Raises UserError, OSError, or ValueError that says what is wrong."""

    def samples(
        self, unit: Unit, ignored: Counter[str]
    ) -> Iterator[tuple[str, Callable[[], Sample]]]:
        """(name for messages, function that gives the sample) of everything in a unit.

        The function raises what is wrong with one sample, BadImage or ValueError, and counts in
        `ignored`, by name, the optional fields of a sample that cannot be used. Raises
        FileNotFoundError, and ValueError where the rest of the unit cannot be read.
        """


def of_files(entry: int, kind: str, pattern: str, ending: str) -> list[Unit]:
    """A unit for each file of a pattern (`patterns.shards`)."""
    paths = patterns.shards(pattern, ending)
    if not paths:
        raise ValueError(
            f'the folder has no {ending}, and those below it are not read'
            if storage.is_folder(pattern)
            else 'there is no such file'
        )
    root = re.split(r'[{*?[]', pattern)[0].rpartition('/')[0]
    if is_below(paths[0], pattern):
        root = pattern.rstrip('/')
    with ThreadPoolExecutor(_THREADS) as pool:  # they wait for a bucket
        sizes = list(pool.map(_size, paths))
    names = [path.removeprefix(f'{root}/') for path in paths]
    return [Unit(entry, kind, *unit) for unit in zip(paths, names, sizes)]


def is_below(path: str, folder: str) -> bool:
    """Whether a pattern `folder` is the folder of the file."""
    return path.startswith(f'{folder.rstrip("/")}/')


def _size(path: str) -> int:
    try:
        return storage.size(path)
    except FileNotFoundError:
        raise UserError(f'--source: {path} is missing') from None


def slices(count: int) -> list[tuple[int, int]]:
    """(first, last + 1) of the units of a source with `count` examples."""
    return [(first, min(first + _SLICE, count)) for first in range(0, count, _SLICE)]
