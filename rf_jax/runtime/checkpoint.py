"""Checkpoints: written in the background, read onto any mesh, never a good one lost.

Folder `<directory>/<step>` holds the state after `step` optimizer steps. It gets this name when its
last file is written; until then it is a temporary folder that nobody reads.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from rf_jax.runtime import checkpoint_files, exits, orbax_log, paths
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.workdir import check_writable

orbax_log.condense()


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
        self.directory = epath.Path(paths.local(directory, 'directory')).resolve()
        check_writable(self.directory)
        exits.saves_in(self.directory)
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

    def ensure(self, step: int, state: Any) -> None:
        """Waits until the checkpoint of `step` is on disk; one that failed is tried once more.

        Raises UserError if it fails again. All processes must call it.
        """
        for again in (True, False):
            self.wait()
            saved = np.asarray(step in self._manager.all_steps())
            if np.all(multihost_utils.process_allgather(saved)):
                return
            if again:
                self.save(step, state)
        raise UserError(
            f'the checkpoint of step {step} could not be saved in {self.directory}, see the '
            f'warnings above; newest there: {self._manager.latest_step()}. Free space on that disk '
            'and give the same command again: it goes on from there'
        )

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
            *(step, self.directory, checkpoint_files.reason(error), self._manager.latest_step()),
        )

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """Reads the newest checkpoint that can be read.

        Damaged ones are reported and renamed to `<step>.corrupt`, if one before them can be read.

        Args:
          abstract_state: tree of ShapeDtypeStruct; each array is read into the sharding that
            stands there (none: the first device), whatever mesh it was saved from.

        Returns:
          (steps done, state), or None if there is no checkpoint.

        Raises:
          UserError: the checkpoint holds other arrays than `abstract_state`; its files cannot be
            read just now; all are damaged. The folder stays as it is.
        """
        self.wait()
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or first),
            abstract_state,
        )
        damaged = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            state, reason = checkpoint_files.read(self.directory / str(step), abstract_state)
            if np.all(multihost_utils.process_allgather(np.asarray(reason is None))):
                for worse in damaged.items():
                    self._set_aside(*worse)
                return step, state
            damaged[step] = reason or 'another host could not read it'
        if damaged:
            told = ''.join(f'\n  step {step}: {reason}' for step, reason in damaged.items())
            raise UserError(
                f'no checkpoint of {self.directory} can be read; move this folder away to begin '
                f'anew, or give another --workdir:{told}'
            )
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
            'Checkpoint %s cannot be read (%s). It now stands in %s; going on from one before.',
            *(folder, reason, aside.name),
        )


def any_in(workdir: str | os.PathLike) -> bool:
    """Whether the folder of a run holds a checkpoint, whole or not."""
    folder = paths.local(workdir, '--workdir')
    return any(path.name.isdecimal() for path in folder.glob('checkpoints/*'))


def holds(workdir: str | os.PathLike, step: int) -> bool:
    """Whether the folder of a run holds the checkpoint of a step, which is whole by its name."""
    return (paths.local(workdir, '--workdir') / 'checkpoints' / str(step)).is_dir()


def newest(directory: str | os.PathLike) -> tuple[int, dict]:
    """(step, what it holds, see `checkpoint_files.described`) of the newest checkpoint of a folder
    that has a description; reads no array. Raises UserError if there is none.
    """
    directory, steps = _steps(directory)
    for step in reversed(steps):
        try:
            return step, checkpoint_files.described(directory / str(step))
        except Exception as error:  # the reader has many names for a damaged file
            _passed_over(directory / str(step), error)
    raise UserError(f'No checkpoint of {directory} can be read; the log above says why.')


def restore_parts(directory: str | os.PathLike, step: int, wanted: Mapping[str, Any]) -> Any:
    """Some arrays of a checkpoint, each process reading its own shards. All must call it.

    Args:
      wanted: a part of the tree that `newest` gives, of ShapeDtypeStruct with shardings.

    Raises:
      UserError: it is damaged, or cannot be read just now.
    """
    folder = epath.Path(directory).resolve() / str(step)
    found, reason = checkpoint_files.read_parts(folder, wanted)
    if np.all(multihost_utils.process_allgather(np.asarray(reason is None))):
        return found
    raise UserError(
        f'checkpoint {folder} is damaged ({reason or "another host could not read it"}); move it '
        'away to start from the one before it'
    )


def restore_numpy(
    directory: str | os.PathLike, step: int | None = None, only: str | None = None
) -> tuple[int, dict]:
    """Reads a checkpoint from its folder alone, whole onto this host; writes nothing.

    Args:
      step: default: the newest that can be read.
      only: one top-level part of the state, such as 'ema', to read no more than that.

    Returns:
      (steps done, nested dictionaries, and lists for tuples, of numpy arrays).

    Raises:
      UserError: there is no such checkpoint or no such part, or none can be read.
    """
    return _restore(directory, step, only, None)


def restore_to_device(
    directory: str | os.PathLike, step: int | None, only: str
) -> tuple[int, dict]:
    """As `restore_numpy`, each array straight onto this host's first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return _restore(directory, step, only, device)


def _restore(directory, step: int | None, only: str | None, sharding) -> tuple[int, dict]:
    directory, steps = _steps(directory, step)
    for number in [step] if step is not None else reversed(steps):
        folder = directory / str(number)
        try:
            held = checkpoint_files.described(folder)
            if only not in (None, *held):
                raise UserError(f'{folder} has no {only!r}; its parts are {", ".join(held)}.')
            wanted = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                held if only is None else {only: held[only]},
            )
            return number, checkpoint_files.read_arrays(folder, wanted)
        except UserError:
            raise
        except Exception as error:  # the reader has many names for a damaged file
            _passed_over(folder, error)
    raise UserError(f'No checkpoint of {directory} can be read; the log above says why.')


def _steps(directory, step: int | None = None) -> tuple[epath.Path, list[int]]:
    """(absolute folder, steps of its checkpoints); raises UserError if `step` or all are absent."""
    # Orbax takes no relative path.
    directory = epath.Path(paths.local(directory, 'directory')).resolve()
    names = [path.name for path in directory.iterdir()] if directory.exists() else []
    steps = sorted(int(name) for name in names if name.isdecimal())
    if not steps or step not in (None, *steps):
        wanted = '' if step is None else f' of step {step}'
        raise UserError(f'No checkpoint{wanted} in {directory}; steps there: {steps or "none"}.')
    return directory, steps


def _passed_over(folder: epath.Path, error: Exception) -> None:
    """Reports a damaged checkpoint; raises UserError for one that only this host cannot read now,
    as without memory for it: an older one would take its place unnoticed.
    """
    checkpoint_files.raise_if_out_of_reach(folder, error)
    reason = checkpoint_files.reason(error)
    logging.warning('Checkpoint %s cannot be read (%s).', folder, reason)
