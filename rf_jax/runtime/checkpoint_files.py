"""What Orbax does for checkpoints: reading one, with damaged files told from temporary failures,
and keeping its output out of the log of a run.
"""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Mapping
from json import JSONDecodeError
from logging import CRITICAL, ERROR, INFO, LogRecord, getLogger
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.sharding import path_name, to_device_memory

ITEM = 'default'  # Orbax's name for the only tree of a checkpoint
UNREACHABLE = ('ABORTED', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED', 'UNAVAILABLE')  # TensorStore's
SHOWN = 10  # differing paths listed in an error message, at most


def read(folder: epath.Path, abstract_state: Any) -> tuple[Any, str | None]:
    """(state, None), or (None, reason) if the checkpoint is damaged. Other errors are raised.

    Raises:
      UserError: it cannot be read at the moment, or its arrays differ from `abstract_state`.
    """
    try:
        metadata = read_metadata(folder)
    except Exception as error:  # damaged metadata can raise anything
        raise_if_unavailable(folder, error)
        return None, reason(error)
    _check_same(folder, metadata, abstract_state)
    # Not ocp.Checkpointer: it ends with a barrier that a process which fails never reaches.
    arguments = ocp.args.StandardRestore(abstract_state)
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler()) as reader:
            return reader.restore(folder / ITEM, args=arguments), None
    except Exception as error:
        sharded = flatten(abstract_state)
        wanted = jax.tree_util.tree_map_with_path(
            lambda path, _: sharded[path_name(path)], metadata
        )
        return None, _damage(folder, wanted, error)


def read_parts(folder: epath.Path, wanted: Mapping[str, Any]) -> tuple[Any, str | None]:
    """Like `read`, for the arrays of `wanted` only; see `read_arrays`."""
    try:
        return read_arrays(folder, wanted), None
    except Exception as error:
        return None, _damage(folder, wanted, error)


def read_metadata(folder: epath.Path) -> Any:
    """Shapes and dtypes of a checkpoint: nested dictionaries and lists of ShapeDtypeStruct."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        metadata = reader.metadata(folder / ITEM)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata.tree)


def read_arrays(folder: epath.Path, wanted: Any) -> Any:
    """Reads the arrays of a tree of ShapeDtypeStruct like that of `read_metadata`, or part of it.

    An array with a sharding is read into its shards, each process reading its own; an array
    without one becomes a numpy array.
    """

    def restore_args(leaf):
        if leaf.sharding is None:
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(
            sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
        )

    arguments = ocp.args.PyTreeRestore(
        item=wanted, restore_args=jax.tree.map(restore_args, wanted), partial_restore=True
    )
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(folder / ITEM, args=arguments)


def apart(tree: Any) -> Any:
    """The tree with copies of its arrays in host memory, made one at a time by way of the device.

    Orbax would write those from their own memory. The next step is given that memory, which XLA
    refuses on a GPU as long as Orbax refers to it.
    """

    def copied(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.sharding.memory_kind != 'pinned_host':
            return x
        return jax.block_until_ready(jax.device_put(to_device_memory(x), x.sharding))

    return jax.tree.map(copied, tree)


def flatten(tree: Any) -> dict[str, Any]:
    """{'/'-joined path: leaf} of a tree, in order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _damage(folder: epath.Path, wanted: Mapping[str, Any], error: Exception) -> str:
    """The reason why the files cannot be read, after a restore has failed with `error`.

    If they can be read, `error` has another cause (no memory, a mesh that does not fit, ...) and is
    raised. Reads one top-level part at a time and discards it, sharded as in `wanted`, so that no
    process or device needs more memory than the restore itself.
    """
    raise_if_unavailable(folder, error)
    if isinstance(error, JSONDecodeError):
        return reason(error)
    for name, part in wanted.items():
        try:
            read_arrays(folder, {name: part})
        except Exception as cause:  # Orbax raises many types for a damaged file
            raise_if_unavailable(folder, cause)
            return reason(cause)
    raise error


def raise_if_unavailable(folder: epath.Path, error: Exception) -> None:
    """Raises UserError if the files cannot be read at the moment: no memory, no permission, a
    server that does not answer, ...

    Missing or truncated files do not count. Device errors are raised unchanged.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        raise error

    def check(cause: Exception) -> None:
        if isinstance(cause, MemoryError | OSError) and not isinstance(cause, FileNotFoundError):
            raise Unavailable(
                f'checkpoint {folder} cannot be read now ({reason(cause)}); nothing was changed. '
                'Run the same command again once it can, or move the folder away if it never will'
            ) from error

    check(error)
    if not storage.is_local(folder):
        try:
            storage.list_files(folder)
        except UserError as cause:
            check(OSError(str(cause)))
        if any(status in str(error) for status in UNREACHABLE):
            check(OSError(str(error)))
        return
    try:  # Orbax may have wrapped the error, so read the files ourselves
        for parent, _, names in os.walk(folder, onerror=check):
            for name in names:
                with open(os.path.join(parent, name), 'rb') as file:
                    file.read(1)
    except OSError as cause:
        check(cause)


def log_damaged(folder: epath.Path, error: Exception) -> None:
    """Logs that a checkpoint is damaged. Raises UserError if it only cannot be read at the moment,
    such as for lack of memory: falling back to an older one would go unnoticed.
    """
    raise_if_unavailable(folder, error)
    logging.warning('Checkpoint %s cannot be read (%s).', folder, reason(error))


def _check_same(folder: epath.Path, metadata: Any, abstract_state: Any) -> None:
    """Raises UserError if paths, shapes or dtypes of the checkpoint differ from the expected."""

    def describe(tree: Any) -> dict[str, str]:
        leaves = flatten(tree).items()
        return {path: f'{np.dtype(x.dtype).name}{list(x.shape)}' for path, x in leaves}

    saved, expected = describe(metadata), describe(abstract_state)
    differ = sorted(k for k in saved.keys() | expected.keys() if saved.get(k) != expected.get(k))
    if differ:
        line = '\n  {}: {} in the checkpoint, {} expected'
        lines = [
            line.format(key, saved.get(key, 'absent'), expected.get(key, 'absent'))
            for key in differ[:SHOWN]
        ]
        lines += [f'\n  and {len(differ) - SHOWN} more'] if len(differ) > SHOWN else []
        raise UserError(
            f'{folder} was written with another config; give the config of that run, or another '
            f'--workdir:{"".join(lines)}'
        )


def reason(error: BaseException) -> str:
    """First line of an error; a long one is shortened in the middle, as the cause comes last."""
    line = re.split(r' \[(?:source|os_error|tensorstore)|\n', str(error).strip())[0]
    line = line if len(line) < 240 else f'{line[:80]} ... {line[-150:]}'
    return f'{type(error).__name__}: {line}'


def quiet_orbax() -> None:
    """Keeps the output of Orbax and TensorStore out of the log, for the whole process.

    Orbax logs about twenty lines per save. When a save fails, each of its threads logs a traceback
    of the error that is raised anyway, and TensorStore prints another for every array still being
    written: thousands of lines for a full disk. `runtime.checkpoint` logs it in one.
    """
    logging.get_absl_logger().addFilter(_keep)
    # Only Orbax uses asyncio here. After the first error it leaves behind tasks and futures whose
    # exceptions are never retrieved, and coroutines that are never awaited.
    getLogger('asyncio').setLevel(CRITICAL)
    warnings.filterwarnings('ignore', "coroutine '.*' was never awaited", RuntimeWarning)
    previous = sys.unraisablehook

    def hook(unraisable):
        error = unraisable.exc_value
        late = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'
        if unraisable.object is not None or not late:
            previous(unraisable)

    sys.unraisablehook = hook


def _keep(record: LogRecord) -> bool:
    """Keeps only warnings of Orbax, without tracebacks; its errors are raised anyway."""
    if not _of_orbax(record.pathname):
        return True
    if not INFO < record.levelno < ERROR:
        return False
    record.exc_info = None
    record.msg, record.args = record.getMessage().strip().partition('\n')[0], ()
    return True


def _of_orbax(text: str) -> bool:
    return f'{os.sep}orbax{os.sep}' in text
