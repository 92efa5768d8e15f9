"""Checkpoints: written in the background, read onto any mesh, never a good one lost.

Folder `<directory>/<step>` holds the state after `step` optimizer steps. It gets this name when its
last file is written; until then it is a temporary folder that nobody reads.
"""

import contextlib
import os
import re
from json import JSONDecodeError
from logging import INFO
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from rf_jax.runtime.errors import UserError
from rf_jax.runtime.sharding import path_name
from rf_jax.runtime.workdir import check_writable

ITEM = 'default'  # Orbax's name for the only tree of a checkpoint
SHOWN = 10  # most differing paths of an error message

# Orbax tells some twenty lines a save; our own log has to stay readable.
logging.get_absl_logger().addFilter(
    lambda record: record.levelno > INFO or f'{os.sep}orbax{os.sep}' not in record.pathname
)


class Checkpoints:
    """The checkpoints of one run, to be written by this run only; see restore_numpy for readers.

    A save that does not reach the disk is reported and counted in `failures`; what was there
    before it stays, and the next one that is due tries again.
    """

    def __init__(self, directory: str | os.PathLike, every: int, keep: int, keep_period: int = 0):
        """
        Args:
          every: steps between checkpoints.
          keep: newest checkpoints to keep.
          keep_period: also keep every multiple of this step; 0: none.

        Raises:
          UserError: a number out of range, or a directory that cannot be written.
        """
        for field, value in {'every': every, 'keep': keep}.items():
            if value < 1:
                raise UserError(f'checkpoint.{field} is {value}, but must be at least 1.')
        self.directory = epath.Path(directory).resolve()
        check_writable(self.directory)
        self.failures = 0
        self._pending: int | None = None  # step of the save under way
        kept = [policies.LatestN(keep)]
        kept += [policies.EveryNSteps(keep_period)] if keep_period else []
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.FixedIntervalPolicy(every),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def due(self, step: int) -> bool:
        """Whether `step` is to be saved: a multiple of `every`."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()  # does not block; reports a failure now rather than at the next save
        return self._manager.should_save(step)

    def latest_step(self) -> int | None:
        """The newest finished checkpoint of the folder, None if there is none."""
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> bool:
        """Copies a tree of arrays to host memory, then returns and writes it in the background.

        The state after `step` optimizer steps may be donated then. Waits for the save before it.

        Returns:
          Whether a save is under way: not if this step is on disk already or the disk refused.
        """
        self.wait()
        if step in self._manager.all_steps():
            return False
        try:
            self._manager.save(step, args=ocp.args.StandardSave(state), force=True)
        except OSError as error:
            self._failed(step, error)
            return False
        self._pending = step
        return True

    def wait(self) -> bool:
        """Waits for the save under way; False if it failed, which is reported, not raised."""
        if self._pending is None:
            return True
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # the writer wraps a full disk in errors of its own
            self._failed(step, error)
            return False
        return True

    def close(self) -> None:
        """Waits for the save under way and ends the background threads."""
        self.wait()
        self._manager.close()

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        if jax.process_index() == 0:  # half a checkpoint on a full disk helps nobody
            for folder in self.directory.glob(f'{step}.orbax-checkpoint-tmp*'):
                with contextlib.suppress(OSError):  # still written to: the next run removes it
                    folder.rmtree()
        with contextlib.suppress(OSError):
            self._manager.reload()  # it has forgotten the older ones that were to make room
        logging.warning(
            'Checkpoint of step %d was NOT saved in %s: %s. Newest on disk: %s. Training goes on '
            'and tries again at the next checkpoint; is the disk full?',
            *(step, self.directory, _reason(error), self._manager.latest_step()),
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Reads the newest checkpoint that can be read.

        A damaged one is reported, renamed to `<step>.corrupt`, and the one before it is tried.

        Args:
          abstract_state: tree of ShapeDtypeStruct; each array is read into the sharding that
            stands there (none: the first device), whatever mesh it was saved from.

        Returns:
          (steps done, state), or None if there is no checkpoint.

        Raises:
          UserError: the checkpoint holds other arrays than `abstract_state`.
        """
        self.wait()
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first),
            abstract_state,
        )
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = _restore(self.directory / str(step), abstract_state)
            if np.all(multihost_utils.process_allgather(np.asarray(reason is None))):
                return step, state
            self._set_aside(step, reason or 'another host could not read it')
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        folder, aside = self.directory / str(step), self.directory / f'{step}.corrupt'
        if jax.process_index() == 0:
            while aside.exists():
                aside = self.directory / f'{aside.name}+'
            folder.rename(aside)
        multihost_utils.sync_global_devices(f'set aside {step}')
        self._manager.reload()
        logging.warning(
            'Checkpoint %s cannot be read (%s). It now stands in %s; trying the one before.',
            *(folder, reason, aside.name),
        )


def any_in(workdir: str | os.PathLike) -> bool:
    """Whether the folder of a run holds a checkpoint, whole or not."""
    return any(path.name.isdecimal() for path in epath.Path(workdir).glob('checkpoints/*'))


def holds(workdir: str | os.PathLike, step: int) -> bool:
    """Whether the folder of a run holds the checkpoint of a step; a folder of that name is whole,
    as it is renamed when all is written.
    """
    return (epath.Path(workdir) / 'checkpoints' / str(step)).is_dir()


def restore_numpy(
    directory: str | os.PathLike, step: int | None = None, only: str | None = None
) -> tuple[int, dict]:
    """Reads a checkpoint from its folder alone, onto one host; writes nothing.

    Args:
      step: default: the newest that can be read.
      only: one top-level part of the state, such as 'ema', to read no more than that.

    Returns:
      (steps done, nested dictionaries, and lists for tuples, of numpy arrays).

    Raises:
      UserError: there is no such checkpoint or no such part, or none can be read.
    """
    directory = epath.Path(directory).resolve()  # orbax takes no other
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps or step not in (None, *steps):
        wanted = '' if step is None else f' of step {step}'
        raise UserError(f'No checkpoint{wanted} in {directory}; steps there: {steps or "none"}.')
    for number in [step] if step is not None else reversed(steps):
        folder = directory / str(number)
        try:
            held = _held(folder)
            if only not in (None, *held):
                raise UserError(f'{folder} has no {only!r}; its parts are {", ".join(held)}.')
            return number, _read_numpy(folder, held if only is None else {only: held[only]})
        except UserError:
            raise
        except Exception as error:  # the reader has many names for a damaged file
            logging.warning('Checkpoint %s cannot be read (%s).', folder, _reason(error))
    raise UserError(f'No checkpoint of {directory} can be read; the log above says why.')


def _restore(folder: epath.Path, abstract_state: Any) -> tuple[Any, str | None]:
    """(state, None), or (None, why the folder is damaged); raises what is not damage."""
    try:
        held = _held(folder)
    except Exception as error:  # whatever a damaged description makes of its reader
        return None, _reason(error)
    _check_same(folder, held, abstract_state)
    arguments = ocp.args.Composite(**{ITEM: ocp.args.StandardRestore(abstract_state)})
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            return reader.restore(folder, args=arguments)[ITEM], None
    except Exception as error:
        damage = _reason(error) if isinstance(error, JSONDecodeError) else _damage(folder, held)
        if damage is None:  # the files are whole: no memory, a mesh that does not fit, ...
            raise
        return None, damage


def _held(folder: epath.Path) -> Any:
    """What a checkpoint says it holds: nested dictionaries and lists of shape and type."""
    handler = ocp.PyTreeCheckpointHandler()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{ITEM: handler})) as reader:
        described = reader.metadata(folder).item_metadata[ITEM]
    if described is None:  # the reader has logged why
        raise ValueError('its description is missing or damaged')
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), described.tree)


def _read_numpy(folder: epath.Path, wanted: Any) -> Any:
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
            _read_numpy(folder, {name: part})
        except Exception as error:  # the reader has many names for a damaged file
            return _reason(error)
    return None


def _check_same(folder: epath.Path, held: Any, abstract_state: Any) -> None:
    """Raises UserError if the checkpoint holds other paths, shapes or types than expected."""

    def described(tree: Any) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {path_name(p): f'{np.dtype(x.dtype).name}{list(x.shape)}' for p, x in leaves}

    there, expected = described(held), described(abstract_state)
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


def _reason(error: BaseException) -> str:
    """First line of an error; of a long one its beginning and its end, where the cause stands."""
    line = re.split(r' \[(?:source|os_error|tensorstore)|\n', str(error).strip())[0]
    line = line if len(line) < 240 else f'{line[:80]} ... {line[-150:]}'
    return f'{type(error).__name__}: {line}'
