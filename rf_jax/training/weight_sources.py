"""Where initial weights come from: other runs, and folders of pretrained weights.

`initialise_from` lists them; `initial_weights` plans which array comes from which, and has them
read straight into shards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import jax

from rf_jax.interop.pretrained import NEW, PREFIX, Pretrained
from rf_jax.runtime import checkpoint, checkpoint_files, distributed, paths
from rf_jax.runtime.errors import UserError

TAKEN = ('params', 'ema', 'codebook')  # parts of a state that can come from elsewhere


class Source(Protocol):
    """Shapes of its arrays by path in a state, and the arrays.

    `folder` and `step` are for logs; `str()` names it there.
    """

    folder: Path
    step: int

    def find(self, path: str) -> str | None:
        """The path of the array that serves for `path`: itself, or params/... for the average of
        a source without one. None: it has none.
        """

    def shape(self, path: str) -> tuple[int, ...]:
        """Of an array by a path that `find` gave."""

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Arrays by path, in the shardings given; all processes must call it."""


class Run:
    """The newest checkpoint of another run. `held`: shapes and dtypes of its arrays by path."""

    def __init__(self, folder: Path, step: int, held: Mapping[str, jax.ShapeDtypeStruct]):
        self.folder, self.step, self._held = folder, step, held

    @classmethod
    def open(cls, folder: Path) -> 'Run':
        """Opens the same step on all hosts, even while the other run is still saving."""
        directory = folder / 'checkpoints'
        step = int(distributed.broadcast(lambda: str(checkpoint.latest(directory)[0]).encode()))
        held = checkpoint_files.read_metadata(directory.resolve() / str(step))
        if not set(TAKEN) <= held.keys():
            raise UserError(
                f'initialise_from: the checkpoint in {directory} has {", ".join(sorted(held))}, '
                f'not {", ".join(TAKEN)}: it is not a checkpoint of rf_jax.train'
            )
        return cls(folder, step, checkpoint_files.flatten({name: held[name] for name in TAKEN}))

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


class Downloaded:
    """A folder of pretrained weights; its parameters serve as their average too."""

    step = 0

    def __init__(self, folder: Path):
        self.folder = folder
        self.pretrained = Pretrained(folder)

    @classmethod
    def open(cls, folder: Path) -> 'Downloaded':
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

        def array(path, leaf):
            def part(index):
                return self.pretrained.read(_parameter(path), index)

            return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

        return {path: array(path, leaf) for path, leaf in wanted.items()}


def _parameter(path: str) -> str:
    return path.removeprefix('params/')


def listed(config) -> list[tuple[type[Run] | type[Downloaded], Path]]:
    """(kind, folder) of each entry of `initialise_from`. Raises UserError for a URL."""
    found = []
    for part in filter(None, (part.strip() for part in config.initialise_from.split(','))):
        kind = Downloaded if part.startswith(PREFIX) else Run
        found.append((kind, paths.local(part.removeprefix(PREFIX), 'initialise_from')))
    return found


def other_runs(config) -> list[Path]:
    """The folders of runs in `initialise_from`. Raises UserError for a URL."""
    return [folder for kind, folder in listed(config) if kind is Run]


def downloads(config) -> list[Path]:
    """The folders of pretrained weights in `initialise_from`. Raises UserError for a URL."""
    return [folder for kind, folder in listed(config) if kind is Downloaded]


def new(config) -> tuple[str, ...]:
    """Regexes of parameters that are new: `initialise_new`, and what no pretrained model has, if
    all weights come from such.
    """
    sources = listed(config)
    pretrained = bool(sources) and all(kind is Downloaded for kind, _ in sources)
    return (*config.initialise_new, *(NEW if pretrained else ()))
