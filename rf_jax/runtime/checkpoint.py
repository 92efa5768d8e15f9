"""Checkpoints: saved in the background, restored onto any mesh, never losing a good one.

Folder `<directory>/<step>` holds the state after `step` optimizer steps. It gets this name, or in a
bucket its last file, once all is written (checkpoint_folder.py); before that nothing reads it.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from rf_jax.runtime import checkpoint_files, checkpoint_folder, errors, paths, storage
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.runtime.workdir import check_writable

checkpoint_files.quiet_orbax()


class Checkpoints:
    """The checkpoints of one run. Only that run may write them; readers use `restore_numpy`.

    A save that fails is logged and counted in `failures`. Earlier checkpoints stay, and the next
    save that is due is attempted as usual.
    """

    def __init__(self, directory: str | os.PathLike, every: int, keep: int, keep_period: int = 0):
        """
        Args:
          every: save every this many steps.
          keep: number of newest checkpoints to keep.
          keep_period: also save at all multiples of this step, and keep these; 0: none.

        Raises:
          UserError: a number is out of range, or the directory cannot be written.
          Unavailable: the bucket cannot be reached.
        """
        for field, value in {'every': every, 'keep': keep}.items():
            if value < 1:
                raise UserError(f'checkpoint.{field} is {value}, but must be at least 1.')
        self.directory = checkpoint_folder.of(directory)
        check_writable(self.directory)
        errors.watch_checkpoints(self.directory, checkpoint_folder.newest)
        self.claim = checkpoint_folder.take_over(self.directory)
        self.failures = 0
        self._pending: int | None = None  # step of the save in progress
        self._manager = checkpoint_folder.open_manager(self.directory, every, keep, keep_period)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due at `step`, a multiple of `every` or `keep_period`."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()  # does not block; logs a failure now rather than at the next save
        return self._manager.should_save(step)

    def latest_step(self) -> int | None:
        """Step of the newest finished checkpoint, None if there is none."""
        self.wait()
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> bool:
        """Copies a tree of arrays to host memory and writes it to disk in the background.

        Waits for the previous save first. The state may be donated as soon as this returns. Raises
        UserError if another process writes to this folder of a bucket now.

        Returns:
          True if a save was started; False if this step is already on disk or writing failed.
        """
        self.wait()
        self.claim.check()
        if step in self._manager.all_steps():
            return False
        try:
            args = ocp.args.StandardSave(checkpoint_files.apart(state))
            self._manager.save(step, args=args, force=True)
        except Exception as error:
            if storage.is_local(self.directory) and not isinstance(error, OSError):
                raise
            self._failed(step, error)  # of a bucket, fsspec and TensorStore raise many types
            return False
        self._pending = step
        return True

    def wait(self) -> bool:
        """Waits for the save in progress; False if it failed, which is logged, not raised."""
        if self._pending is None:
            return True
        step, self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax wraps a full disk in its own exceptions
            self._failed(step, error)
            return False
        return True

    def ensure(self, step: int, state: Any) -> None:
        """Waits until the checkpoint of `step` is on disk; retries once if the save failed.

        Raises UserError, for a bucket Unavailable, if it fails again. All processes must call it.
        """
        for retry in (True, False):
            self.wait()
            saved = np.asarray(step in self._manager.all_steps())
            if np.all(multihost_utils.process_allgather(saved)):
                return
            if retry:
                self.save(step, state)
        local = storage.is_local(self.directory)
        raise (UserError if local else Unavailable)(
            f'the checkpoint of step {step} could not be saved in {self.directory}, see the '
            f'warnings above; newest there: {self._manager.latest_step()}. '
            f'{"Free space there and run" if local else "Run"} the same command again to resume'
        )

    def close(self) -> None:
        """Waits for the save in progress and ends the threads."""
        self.wait()
        self._manager.close()

    def _failed(self, step: int, error: Exception) -> None:
        self.failures += 1
        local = storage.is_local(self.directory)
        failing = contextlib.suppress(OSError if local else Exception)  # fsspec has many types
        if jax.process_index() == 0:  # a partial checkpoint only fills the disk
            with failing:  # if still written, the next run does it
                checkpoint_folder.discard(self.directory, step)
        with failing:
            self._manager.reload()  # it already forgot the checkpoints to delete
        logging.warning(
            'Checkpoint of step %d was NOT saved in %s: %s. Newest there: %s. Training continues '
            'and saves again at the next checkpoint.%s',
            *(step, self.directory, checkpoint_files.reason(error), self._manager.latest_step()),
            ' Is the disk full?' if local else '',
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Restores the newest readable checkpoint.

        Damaged checkpoints are logged and renamed to `<step>.corrupt`, provided that an older one
        can be read.

        Args:
          abstract_state: tree of ShapeDtypeStruct; each array is restored with the sharding given
            there (None: the first device), whatever mesh it was saved from.

        Returns:
          (step, state), or None if there is no checkpoint.

        Raises:
          UserError: the arrays of the checkpoint differ from `abstract_state`, its files cannot
            be read at the moment, or all checkpoints are damaged. The folder is left unchanged.
        """
        self.wait()
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or device),
            abstract_state,
        )
        damaged = {}
        for step in checkpoint_folder.agreed_steps(self.directory, self._manager.all_steps()):
            state, reason = checkpoint_files.read(self.directory / str(step), abstract_state)
            if np.all(multihost_utils.process_allgather(np.asarray(reason is None))):
                for newer, why in damaged.items():
                    self._set_aside(newer, why)
                return step, state
            damaged[step] = reason or 'another host could not read it'
        if damaged:
            reasons = ''.join(f'\n  step {step}: {reason}' for step, reason in damaged.items())
            raise UserError(
                f'no checkpoint of {self.directory} can be read; move this folder away to '
                f'start from scratch, or give another --workdir:{reasons}'
            )
        return None

    def _set_aside(self, step: int, reason: str) -> None:
        folder, aside = self.directory / str(step), self.directory / f'{step}.corrupt'
        if jax.process_index() == 0:
            while aside.exists():
                aside = self.directory / f'{aside.name}+'
            checkpoint_folder.rename(folder, aside)
        multihost_utils.sync_global_devices(f'set aside {step}')
        self._manager.reload()
        logging.warning(
            'Checkpoint %s cannot be read (%s). It was renamed to %s; resuming from an older one.',
            *(folder, reason, aside.name),
        )


def exists_in(workdir: str | os.PathLike) -> bool:
    """Whether a workdir holds any checkpoint, damaged or not."""
    try:
        return checkpoint_folder.newest(paths.anywhere(workdir, '--workdir') / 'checkpoints') >= 0
    except OSError:  # of this machine: a folder that cannot be listed
        return False


def has_step(workdir: str | os.PathLike, step: int) -> bool:
    """Whether a workdir holds the finished checkpoint of `step`. Raises UserError."""
    return checkpoint_folder.has(paths.anywhere(workdir, '--workdir') / 'checkpoints', step)


def latest(directory: str | os.PathLike) -> tuple[int, dict]:
    """(step, tree of ShapeDtypeStruct) of the newest checkpoint whose metadata can be read, without
    its arrays. Raises UserError if there is none.
    """
    directory, steps = _steps(directory)
    for step in steps:
        try:
            return step, checkpoint_files.read_metadata(directory / str(step))
        except Exception as error:  # Orbax raises many types for a damaged file
            checkpoint_files.log_damaged(directory / str(step), error)
    raise UserError(f'No checkpoint of {directory} can be read; the log above says why.')


def restore_parts(directory: str | os.PathLike, step: int, wanted: Mapping[str, Any]) -> Any:
    """Restores some arrays of a checkpoint, each process its own shards. All must call it.

    Args:
      wanted: part of the tree that `latest` returns: ShapeDtypeStructs with shardings.

    Raises:
      UserError: the checkpoint is damaged, or cannot be read at the moment.
    """
    folder = checkpoint_folder.of(directory) / str(step)
    arrays, reason = checkpoint_files.read_parts(folder, wanted)
    if np.all(multihost_utils.process_allgather(np.asarray(reason is None))):
        return arrays
    raise UserError(
        f'checkpoint {folder} is damaged ({reason or "another host could not read it"}); move it '
        'away to start from the one before it'
    )


def restore_numpy(
    directory: str | os.PathLike, step: int | None = None, only: str | None = None
) -> tuple[int, dict]:
    """Reads a checkpoint into the memory of this host, without knowing the config; read-only.

    Args:
      step: the newest readable checkpoint by default.
      only: read just this top-level part of the state, such as 'ema'.

    Returns:
      (step, nested dictionaries of numpy arrays, with lists in place of tuples).

    Raises:
      UserError: there is no such checkpoint or part, or no checkpoint can be read.
    """
    return _restore(directory, step, only, lambda tree: tree)


def restore_placed(
    directory: str | os.PathLike, step: int | None, only: str, place: Callable[[Any], Any]
) -> tuple[int, dict]:
    """Like `restore_numpy`, but each process reads its own shards, with the shardings and dtypes
    that `place` gives the ShapeDtypeStructs of the tree.
    """
    return _restore(directory, step, only, place)


def _restore(directory, step: int | None, only: str | None, place) -> tuple[int, dict]:
    directory, steps = _steps(directory, step)
    for number in steps:
        folder = directory / str(number)
        try:
            metadata = checkpoint_files.read_metadata(folder)
            if only not in (None, *metadata):
                raise UserError(f'{folder} has no {only!r}; its parts are {", ".join(metadata)}.')
            wanted = place(metadata if only is None else {only: metadata[only]})
            return number, checkpoint_files.read_arrays(folder, wanted)
        except UserError:
            raise
        except Exception as error:  # Orbax raises many types for a damaged file
            checkpoint_files.log_damaged(folder, error)
    raise UserError(f'No checkpoint of {directory} can be read; the log above says why.')


def _steps(directory, step: int | None = None) -> tuple[epath.Path, Iterable[int]]:
    """(absolute path, `step` or all from the newest on); raises UserError if there is none."""
    directory = checkpoint_folder.of(directory)
    if step is None and checkpoint_folder.newest(directory) >= 0:
        return directory, checkpoint_folder.newest_first(directory)
    if step is not None and checkpoint_folder.has(directory, step):
        return directory, [step]
    wanted, steps = '' if step is None else f' of step {step}', checkpoint_folder.steps(directory)
    raise UserError(f'No checkpoint{wanted} in {directory}; steps there: {steps or "none"}.')
