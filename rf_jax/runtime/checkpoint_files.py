"""One checkpoint off the disk, and what is damage to it and what only keeps it from being read."""

import os
import re
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
        _raise_if_out_of_reach(folder, error)
        return None, reason(error)
    _check_same(folder, held, abstract_state)
    arguments = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract_state)})
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder, args=arguments)[ITEM], None
    except Exception as error:
        _raise_if_out_of_reach(folder, error)
        damage = reason(error) if isinstance(error, JSONDecodeError) else _damage(folder, held)
        if damage is None:  # the files are whole: no memory, a mesh that does not fit, ...
            raise
        return None, damage


def described(folder: epath.Path) -> Any:
    """What a checkpoint says it holds: nested dictionaries and lists of shape and type."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{ITEM: handler})) as reader:
        found = reader.metadata(folder).item_metadata[ITEM]
    if found is None:  # the reader has logged why
        raise ValueError('its description is missing or damaged')
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found.tree)


def read_numpy(folder: epath.Path, wanted: Any) -> Any:
    """The arrays of a tree like that of `described`, or of a part of it."""
    arguments = ocp.args.PyTreeRestore(
        item=wanted,
        restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(folder, args=ocp.args.Composite(**{ITEM: arguments}))[ITEM]


def _damage(folder: epath.Path, held: Any) -> str | None:
    """Why the files of a checkpoint cannot be read, None if all can; one top-level part a time."""
    for name, part in held.items():
        try:
            read_numpy(folder, {name: part})
        except Exception as error:  # the reader has many names for a damaged file
            _raise_if_out_of_reach(folder, error)
            return reason(error)
    return None


def _raise_if_out_of_reach(folder: epath.Path, error: Exception) -> None:
    """Raises UserError where not the files are at fault for an error of their reader: no memory,
    no permission, a server that does not answer, ...; what is missing or short is damage.
    """

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
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {path_name(p): f'{np.dtype(x.dtype).name}{list(x.shape)}' for p, x in leaves}

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
