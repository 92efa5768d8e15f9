"""One checkpoint off the disk, and what is damage to it and what only keeps it from being read."""

import contextlib
import os
import re
from collections.abc import Mapping
from json import JSONDecodeError
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.sharding import path_name

ITEM = 'default'  # Orbax's name for the only tree of a checkpoint
SHOWN = 10  # most differing paths of an error message


def read(folder: epath.Path, abstract_state: Any) -> tuple[Any, str | None]:
    """(state, None), or (None, why the folder is damaged); raises what is not damage.

    UserError: it cannot be read just now, or holds other arrays than `abstract_state`.
    """
    try:
        held = described(folder)
    except Exception as error:  # whatever a damaged description makes of its reader
        raise_if_out_of_reach(folder, error)
        return None, reason(error)
    _check_same(folder, held, abstract_state)
    # Not by ocp.Checkpointer: all processes meet at its end, and one that fails would not come.
    arguments = ocp.args.StandardRestore(abstract_state)
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(folder / ITEM, args=arguments), None
    except Exception as error:
        sharded = named(abstract_state)
        wanted = jax.tree_util.tree_map_with_path(lambda path, _: sharded[path_name(path)], held)
        return None, _damage(folder, wanted, error)


def read_parts(folder: epath.Path, wanted: Mapping[str, Any]) -> tuple[Any, str | None]:
    """As `read`, of some arrays of a checkpoint: see `read_arrays`."""
    try:
        return read_arrays(folder, wanted), None
    except Exception as error:
        return None, _damage(folder, wanted, error)


def described(folder: epath.Path) -> Any:
    """What a checkpoint says it holds: nested dictionaries and lists of shape and type."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        found = reader.metadata(folder / ITEM)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.tree)


def read_arrays(folder: epath.Path, wanted: Any) -> Any:
    """The arrays of a tree of ShapeDtypeStruct like that of `described`, or of a part of it.

    One with a sharding is read straight into its shards, of which a process reads its own; one
    without becomes a whole numpy array.
    """

    def how(leaf):
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )

    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=jax.tree.map(how, wanted), partial_restore=True
    )
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder / ITEM, args=arguments)


def named(tree: Any) -> dict[str, Any]:
    """{'/'-joined path: leaf} of a tree, in its order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _damage(folder: epath.Path, wanted: Mapping[str, Any], error: Exception) -> str:
    """Why the files of a checkpoint cannot be read after an error of its reader; raises the error
    if they can: no memory, a mesh that does not fit, ...

    Reads one top-level part at a time and keeps none: as `wanted` is sharded, no process and no
    device holds more than it would have held.
    """
    raise_if_out_of_reach(folder, error)
    if isinstance(error, JSONDecodeError):
        return reason(error)
    for name, part in wanted.items():
        try:
            read_arrays(folder, {name: part})
        except Exception as cause:  # the reader has many names for a damaged file
            raise_if_out_of_reach(folder, cause)
            return reason(cause)
    raise error


def raise_if_out_of_reach(folder: epath.Path, error: Exception) -> None:
    """Raises UserError where not the files are at fault for an error of their reader: no memory,
    no permission, a server that does not answer, ...; what is missing or short is damage. An error
    of a device is raised as it is.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        raise error

    def refuse(cause: Exception) -> None:
        if isinstance(cause, MemoryError | OSError) and not isinstance(cause, FileNotFoundError):
            raise Unavailable(
                f'checkpoint {folder} cannot be read now ({reason(cause)}); nothing was changed. '
                'Give the same command again when it can, or move the folder away if it never will'
            ) from error

    refuse(error)
    try:  # the reader has names of its own for these too
        for parent, _, names in os.walk(folder, onerror=refuse):
            for name in names:
                with open(os.path.join(parent, name), 'rb') as file:
                    file.read(1)
    except OSError as cause:
        refuse(cause)


def _check_same(folder: epath.Path, held: Any, abstract_state: Any) -> None:
    """Raises UserError if the checkpoint holds other paths, shapes or types than expected."""

    def listed(tree: Any) -> dict[str, str]:
        leaves = named(tree).items()
        return {path: f'{np.dtype(x.dtype).name}{list(x.shape)}' for path, x in leaves}

    there, expected = listed(held), listed(abstract_state)
    differ = sorted(k for k in there.keys() | expected.keys() if there.get(k) != expected.get(k))
    if differ:
        told = '\n  {}: {} in the checkpoint, {} expected'
        lines = [
            told.format(key, there.get(key, 'absent'), expected.get(key, 'absent'))
            for key in differ[:SHOWN]
        ]
        lines += [f'\n  and {len(differ) - SHOWN} more'] if len(differ) > SHOWN else []
        raise UserError(
            f'{folder} was written with another config; give the config of that run, or another '
            f'--workdir:{"".join(lines)}'
        )


def reason(error: BaseException) -> str:
    """First line of an error; of a long one its beginning and its end, where the cause stands."""
    line = re.split(r' \[(?:source|os_error|tensorstore)|\n', str(error).strip())[0]
    line = line if len(line) < 240 else f'{line[:80]} ... {line[-150:]}'
    return f'{type(error).__name__}: {line}'
