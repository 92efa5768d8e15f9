"""The second pass: writes a shard of the set, from the samples of all units whose random keys lie
in its range.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from rf_jax.data.shards import index
from rf_jax.data.shards.index import Index
from rf_jax.data.shards.set_file import KINDS, Shard
from rf_jax.preparation import cleaning, files, merging
from rf_jax.preparation.merging import Part
from rf_jax.preparation.report import SUFFIX, Report
from rf_jax.runtime import storage

PLAN = 'plan.json'
NAMES = rf'({"|".join(KINDS)})-\d{{5,}}\.tar'  # of shards
DONE = rf'[0-9a-f]{{16}}\.({"|".join(KINDS)})-\d{{5,}}\.json'  # records of finished shards
_THREADS = 16  # reading waits for a bucket


@dataclass(frozen=True)
class Plan:
    """`units`: those that have samples of each of KINDS, and how many. `shards`: of each kind."""

    seed: int
    units: Mapping[str, Sequence[tuple[str, int]]]
    shards: Mapping[str, int]

    @classmethod
    def of(cls, reports: Mapping[str, Report], seed: int, shard_megabytes: int) -> 'Plan':
        """For {unit: its report}, in the order of the units."""
        units, shards = {}, {}
        for kind in KINDS:
            units[kind] = [
                [unit, report.samples[kind]]
                for unit, report in reports.items()
                if report.samples.get(kind)
            ]
            total = sum(report.bytes.get(kind, 0) for report in reports.values())
            shards[kind] = math.ceil(total / (shard_megabytes * 2**20))
        return cls(seed, units, shards)

    @classmethod
    def read(cls, path: str) -> 'Plan':
        return cls(**json.loads(storage.read(path)))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def names(self) -> list[tuple[str, int]]:
        """(kind, number) of all shards."""
        return [(kind, number) for kind in KINDS for number in range(self.shards[kind])]


def name_of(kind: str, number: int) -> str:
    """The file name of a shard."""
    return f'{kind}-{number:05d}.tar'


def done_path(out: str, plan: Plan, kind: str, number: int) -> str:
    """Where a finished shard is recorded, as a `set_file.Shard`."""
    return f'{out}/{cleaning.FOLDER}/{plan.digest}.{kind}-{number:05d}{SUFFIX}'


@dataclass(frozen=True)
class Shuffling:
    """Work of Beam's: the shards of the plan that is kept in the folder of the set, by number."""

    out: str
    checksum: str  # of the tokenizer

    def start(self) -> Callable[[int], None]:
        """What writes the shard of a number."""
        plan = Plan.read(f'{self.out}/{cleaning.FOLDER}/{PLAN}')
        names = plan.names()

        def write(number: int) -> None:
            kind, shard = names[number]
            made = _write(self.out, plan, kind, shard, self.checksum)
            storage.write(done_path(self.out, plan, kind, shard), json.dumps(asdict(made)).encode())

        return write


def _write(out: str, plan: Plan, kind: str, number: int, checksum: str) -> Shard:
    bounds = [number * 2**64 // plan.shards[kind], (number + 1) * 2**64 // plan.shards[kind] - 1]
    with ThreadPoolExecutor(_THREADS) as pool:
        part = partial(_part, out, plan.seed, kind, np.array(bounds, np.uint64))
        parts = [found for found in pool.map(part, plan.units[kind]) if len(found.keys)]
    name = name_of(kind, number)
    if not parts:  # of few and large samples
        return Shard(name, 0, 0, '')
    with files.new(f'{out}/{name}') as file:
        samples, images = merging.merge(parts, kind == KINDS[1], file)
        size, digest = file.seek(0, 2), merging.digest(file)
    built = Index(samples, size, checksum[:32], images)
    storage.write(index.path_of(f'{out}/{name}'), built.to_bytes())
    return Shard(name, len(samples), size, digest)


def _part(out: str, seed: int, kind: str, bounds: np.ndarray, unit: Sequence) -> Part:
    """The samples of a unit whose keys are within `bounds`, uint64[2]."""
    name, count = unit
    keys = cleaning.keys(seed, name, kind, count)
    first = np.count_nonzero(keys < bounds[0])  # a unit's samples are in the order of their keys
    own = np.sort(keys[(keys >= bounds[0]) & (keys <= bounds[1])])  # far fewer than all
    path, talks = cleaning.path_of(out, name, kind), kind == KINDS[1]
    samples, images = index.read_part(
        index.path_of(path), count, slice(first, first + len(own)), talks
    )
    start = int(index.first(samples[:1])[0]) if talks and len(samples) else 0
    return Part(path, samples, own, images, start)
