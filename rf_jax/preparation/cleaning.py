"""The first pass: reads a unit of the input and keeps what can be used, in a tar file of its own.

The samples of that file are sorted by random key, so that those of any one shard are contiguous.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from rf_jax.data import resizing
from rf_jax.data.hashing import hash64
from rf_jax.data.records import BadImage, Skips
from rf_jax.data.shards import index, sample
from rf_jax.data.shards.building import IndexBuilder
from rf_jax.data.shards.index import Index
from rf_jax.data.shards.sample import Sample
from rf_jax.data.shards.set_file import KINDS
from rf_jax.data.shards.tar import TarWriter
from rf_jax.data.tokenizer import Tokenizer, parse_tokenizer
from rf_jax.preparation import files, merging, pictures, source_flag
from rf_jax.preparation.report import SUFFIX, Report
from rf_jax.preparation.settings import Settings
from rf_jax.preparation.unit import Unit
from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.rng import fold

FOLDER = 'cleaned'
UNITS = 'units.json'


@dataclass(frozen=True)
class Cleaning:
    """Work of Beam's: the units listed in the folder of the set, by number."""

    out: str
    settings: Settings
    tokenizer: str  # name of its file

    def start(self) -> Callable[[int], None]:
        """What cleans the unit of a number, in this process."""
        tokenizer = parse_tokenizer(storage.read(f'{self.out}/{self.tokenizer}'))
        listed = source_flag.read_units(f'{self.out}/{FOLDER}/{UNITS}')

        def clean(number: int) -> None:
            unit = listed[number]
            report = _clean(unit, self.settings, tokenizer, f'{self.out}/{FOLDER}/{unit.id}')
            report.write(f'{self.out}/{FOLDER}/{unit.id}{SUFFIX}')

        return clean


def path_of(out: str, unit: str, kind: str) -> str:
    """The tar file of one kind of a unit."""
    return f'{out}/{FOLDER}/{unit}.{kind}.tar'


def keys(seed: int, unit: str, kind: str, count: int) -> np.ndarray:
    """uint64[count] of the samples of a unit, in the order of its input.

    Independent and uniform: in their order the samples of all units are shuffled.
    """
    return hash64(np.uint64(fold(seed, unit, kind)) + np.arange(count, dtype=np.uint64))


def _clean(unit: Unit, settings: Settings, tokenizer: Tokenizer, stem: str) -> Report:
    skips, ignored = Skips(), Counter()
    extension = pictures.ENCODINGS[settings.encoding][0]
    with contextlib.ExitStack() as stack:
        outputs = {
            kind: stack.enter_context(_Output(f'{stem}.{kind}.tar', unit.id, extension, tokenizer))
            for kind in KINDS
        }
        try:
            fit = partial(
                pictures.fitted,
                size=settings.size,
                encoding=settings.encoding,
                resizer=resizing.named(settings.resizer),
            )
            for name, read in source_flag.samples(unit, ignored):
                _add(outputs, read, name, fit, skips)
        except Unavailable:
            raise
        except UserError as error:
            return Report(error=str(error))
        kept = {kind: output for kind, output in outputs.items() if output.count}
        for kind, output in kept.items():
            order = keys(settings.seed, unit.id, kind, output.count)
            output.write(order, kind == KINDS[1])
        samples = {kind: output.count for kind, output in kept.items()}
        sizes = {kind: output.bytes for kind, output in kept.items()}
        return Report(samples, sizes, dict(skips.counts), skips.examples, ignored=dict(ignored))


def _add(
    outputs: Mapping[str, '_Output'],
    read: Callable[[], Sample],
    name: str,
    fit: Callable[[bytes], tuple[bytes, tuple[int, int]]],
    skips: Skips,
) -> None:
    """Adds a sample to the output of its kind, or counts why it cannot be used."""
    try:
        found = read()
        fitted = [fit(data) for data in found.images]
        found = dataclasses.replace(found, images=tuple(data for data, _ in fitted))
        outputs[KINDS[bool(found.messages)]].add(found, [size for _, size in fitted])
    except UserError:  # a ValueError too
        raise
    except (BadImage, ValueError) as error:
        skips.add_unusable(name, error)


class _Output:
    """The samples of one kind of a unit, in the order of the input, and then in that of keys."""

    def __init__(self, path: str, unit: str, extension: str, tokenizer: Tokenizer):
        self._path, self._unit, self._extension = path, unit, extension
        self._file = files.scratch(path)
        self._writer = TarWriter(self._file)
        self._builder = IndexBuilder(tokenizer)

    @property
    def count(self) -> int:
        return len(self._builder)

    @property
    def bytes(self) -> int:
        return self._writer.bytes

    def add(self, found: Sample, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError if it is larger than an index can say."""
        members = sample.to_members(found, self._extension)
        at = self._writer.add(f'{self._unit}{self.count:08d}', members)
        self._builder.add(found, sizes, *at)  # if it raises, the bytes stay behind unused

    def write(self, order: np.ndarray, talks: bool) -> None:
        with files.new(self._path) as file:
            self._file.flush()
            built = self._builder.index(0)
            part = merging.Part(self._file.name, built.samples, order, built.images)
            samples, images = merging.merge([part], talks, file)
            size = file.seek(0, 2)
        ordered = Index(samples, size, built.tokenizer, images)
        storage.write(index.path_of(self._path), ordered.to_bytes())

    def __enter__(self) -> '_Output':
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
