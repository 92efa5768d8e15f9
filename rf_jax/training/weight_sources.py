"""Where initial weights come from: other runs, and folders of pretrained weights.

`initialise_from` lists them; `initial_weights` plans which array comes from which, and has them
read straight into shards.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

import jax
from absl import logging
from jax.sharding import SingleDeviceSharding

from rf_jax.data import source_list
from rf_jax.interop import kept
from rf_jax.interop.pretrained import NEW, PREFIX, Pretrained
from rf_jax.interop.table import ranges
from rf_jax.runtime import (
    checkpoint,
    checkpoint_files,
    checkpoint_folder,
    distributed,
    paths,
    sharding,
    storage,
)
from rf_jax.runtime.errors import UserError
from rf_jax.training import lora

TAKEN = ('params', 'ema', 'codebook')  # parts of a state that can come from elsewhere
PIECE = 4096  # bytes of the beginning and of the end of a file that a checksum covers


class Source(Protocol):
    """Shapes of its arrays by path in a state, and the arrays.

    `folder` and `step` are for logs; `str()` names it there.
    """

    folder: paths.AnyPath
    step: int

    @staticmethod
    def counted(name: str) -> bool:
        """Whether a file there determines the weights, by its path from that folder."""

    @staticmethod
    def files(folder: paths.AnyPath, step: int) -> paths.AnyPath:
        """The folder with what is read."""

    def find(self, path: str) -> str | None:
        """The path of the array that serves for `path`: itself, or params/... for the average of
        a source without one. None: it has none.
        """

    def shape(self, path: str) -> tuple[int, ...]:
        """Of an array by a path that `find` gave."""

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by path, in the shardings given; all processes must call it."""

    def keep(self, workdir: paths.AnyPath) -> None:
        """Keeps in a workdir what an export will need of pretrained weights."""


class Run:
    """A checkpoint of another run. `held`: shapes and dtypes of its arrays by path."""

    def __init__(self, folder: paths.AnyPath, step: int, held: Mapping[str, jax.ShapeDtypeStruct]):
        self.folder, self.step, self._held = folder, step, held

    @staticmethod
    def counted(name: str) -> bool:
        return True

    @staticmethod
    def files(folder: paths.AnyPath, step: int) -> paths.AnyPath:
        return folder / 'checkpoints' / str(step)

    @classmethod
    def open(cls, folder: paths.AnyPath, step: int | None = None) -> 'Run':
        """Opens the same step on all hosts, even while the other run is still saving: the newest,
        if none is given.
        """
        directory = folder / 'checkpoints'
        if step is None:
            step = int(distributed.broadcast(lambda: str(checkpoint.latest(directory)[0]).encode()))
        held = checkpoint_files.read_metadata(checkpoint_folder.of(directory) / str(step))
        if not set(TAKEN) <= held.keys():
            raise UserError(
                f'initialise_from: the checkpoint in {directory} has {", ".join(sorted(held))}, '
                f'not {", ".join(TAKEN)}: it is not a checkpoint of rf_jax.train'
            )
        arrays = checkpoint_files.flatten({name: held[name] for name in TAKEN})
        if any(map(lora.is_adapter, arrays)):
            raise UserError(
                f'initialise_from: {folder} has adapters of other weights (lora.rank), no whole '
                'model: export it first, which merges them'
            )
        return cls(folder, step, arrays)

    def __str__(self) -> str:
        return f'{self.folder} at step {self.step}'

    def find(self, path: str) -> str | None:
        return path if path in self._held else None

    def shape(self, path: str) -> tuple[int, ...]:
        return self._held[path].shape

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        tree: dict = {}
        for path, leaf in wanted.items():
            *above, name = path.split('/')
            at = tree
            for part in above:
                at = at.setdefault(part, {})
            at[name] = leaf
        return checkpoint_files.flatten(
            checkpoint.restore_parts(self.folder / 'checkpoints', self.step, tree)
        )

    def keep(self, workdir: paths.AnyPath) -> None:
        kept.hand_on(self.folder, workdir)


class Downloaded:
    """A folder of pretrained weights; its parameters serve as their average too."""

    step = 0

    def __init__(self, folder: paths.AnyPath):
        self.folder = folder
        self.pretrained = Pretrained(folder)

    @staticmethod
    def counted(name: str) -> bool:
        """Not the notes and caches that a download leaves, or a model card."""
        return '/' not in name and (
            name in ('config.json', 'preprocessor_config.json')
            or name.endswith(('.safetensors', '.index.json'))
        )

    @staticmethod
    def files(folder: paths.AnyPath, step: int) -> paths.AnyPath:
        del step
        return folder

    @classmethod
    def open(cls, folder: paths.AnyPath, step: int | None = None) -> 'Downloaded':
        del step
        return cls(folder)

    def __str__(self) -> str:
        return f'{PREFIX}{self.folder}'

    def find(self, path: str) -> str | None:
        part, _, name = path.partition('/')
        known = part in ('params', 'ema') and name in self.pretrained.leaves
        return f'params/{name}' if known else None

    def shape(self, path: str) -> tuple[int, ...]:
        return self.pretrained.leaves[_parameter(path)].shape

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Each process reads the slices of its own devices, one array after the other."""
        amount = sharding.format_bytes(self.amount(wanted, jax.process_index()))
        logging.info('Reading %s of %s in this process', amount, self)
        return {path: self._array(_parameter(path), leaf) for path, leaf in wanted.items()}

    def _array(self, path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """One part after the other; `jax.make_array_from_callback` would hold all of them twice."""
        where, parts, on_device = leaf.sharding, {}, {}
        for device, index in where.addressable_devices_indices_map(leaf.shape).items():
            parts.setdefault(str(index), (index, []))[1].append(device)
        for index, devices in parts.values():
            part = self.pretrained.read(path, index).astype(leaf.dtype, copy=False)
            for device in devices:
                place = SingleDeviceSharding(device, memory_kind=where.memory_kind)
                copy = jax.device_put(part, place, may_alias=False)
                on_device[device] = copy.block_until_ready()
            del part  # before the next is made
        shards = [on_device[device] for device in where.addressable_devices_indices_map(leaf.shape)]
        return jax.make_array_from_single_device_arrays(leaf.shape, where, shards)

    def amount(self, wanted: Mapping[str, jax.ShapeDtypeStruct], process: int) -> int:
        """Bytes of the files that a process reads: of each array, the distinct parts on its
        devices.
        """
        total = 0
        for path, leaf in wanted.items():
            places = leaf.sharding.devices_indices_map(leaf.shape).items()
            own = {str(index): index for device, index in places if device.process_index == process}
            parts = (map(len, ranges(index, leaf.shape)) for index in own.values())
            itemsize = self.pretrained.itemsize(_parameter(path))
            total += itemsize * sum(map(math.prod, parts))
        return total

    def keep(self, workdir: paths.AnyPath) -> None:
        kept.keep(self.pretrained, workdir)


def digest(kind: type[Run] | type[Downloaded], top: paths.AnyPath) -> str:
    """Checksum of the names, sizes, first and last bytes of the files of a source, as this process
    sees them: cheap, whatever their size.
    """
    found = hashlib.sha256()
    sizes = storage.list_files(top)
    for name in sorted(filter(kind.counted, sizes), key=PurePosixPath):
        size = sizes[name]
        length, last = min(PIECE, size), max(size - PIECE, 0)
        found.update(f'{name} {size}\n'.encode())
        found.update(storage.read_range(top / name, 0, length))
        found.update(storage.read_range(top / name, last, size - last))
    return found.hexdigest()


def _parameter(path: str) -> str:
    return path.removeprefix('params/')


class Listed(NamedTuple):
    """An entry of `initialise_from`; `step` None: the newest."""

    kind: type[Run] | type[Downloaded]
    folder: paths.AnyPath
    step: int | None = None


def listed(config) -> list[Listed]:
    r"""The entries of `initialise_from`, where `\,` is a comma within a path: runs can be in a
    bucket, downloads not. `runs/earlier@4000` is a run at a step, unless a folder has this name.

    Raises UserError.
    """
    found = []
    for part in source_list.parts(config.initialise_from):
        if part.startswith(PREFIX):
            path = part.removeprefix(PREFIX).strip()
            found.append(Listed(Downloaded, paths.local(path, 'initialise_from')))
            continue
        folder, step = paths.anywhere(part, 'initialise_from'), None
        at = re.fullmatch(r'(.+)@(\d+)', part)
        if at and not storage.is_folder(folder):
            folder, step = paths.anywhere(at[1], 'initialise_from'), int(at[2])
        found.append(Listed(Run, folder, step))
    return found


def with_absolute_paths(config) -> str:
    """`initialise_from` with absolute paths."""
    found = []
    for kind, folder, step in listed(config):
        path = str(paths.absolute(folder)).replace(',', '\\,')
        at = '' if step is None else f'@{step}'
        found.append(f'{PREFIX if kind is Downloaded else ""}{path}{at}')
    return ','.join(found)


def other_runs(config) -> list[paths.AnyPath]:
    """The folders of runs in `initialise_from`. Raises UserError."""
    return [folder for kind, folder, _ in listed(config) if kind is Run]


def downloads(config) -> list[paths.AnyPath]:
    """The folders of pretrained weights in `initialise_from`. Raises UserError."""
    return [folder for kind, folder, _ in listed(config) if kind is Downloaded]


def with_text(config) -> list[paths.AnyPath]:
    """The folders of `initialise_from` whose tokenizer fits the weights: SigLIP2 has one of its own
    text tower. Raises UserError.
    """
    return [
        folder
        for kind, folder, _ in listed(config)
        if kind is Run or 'text_embed/table' in Pretrained(folder).leaves
    ]


def new(config) -> tuple[str, ...]:
    """Regexes of parameters that are new: `initialise_new`, and what no pretrained model has, if
    all weights come from such.
    """
    sources = listed(config)
    pretrained = bool(sources) and all(kind is Downloaded for kind, *_ in sources)
    return (*config.initialise_new, *(NEW if pretrained else ()))


def keep(sources: Sequence[Source], workdir: paths.AnyPath) -> None:
    """Keeps what an export will need of these sources alone; of two, what the first has."""
    kept.forget(workdir)
    for source in reversed(sources):
        source.keep(workdir)
