"""The workdir of a run: atomic writes of small files, and locks, which only a disk has."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Mapping
from typing import BinaryIO

import jax

from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import Unavailable, UserError


def write_run_files(workdir: str | os.PathLike, files: Mapping[str, str | bytes]) -> None:
    """Writes files (name -> content) atomically, in process 0 only. Raises UserError."""
    if jax.process_index() != 0:
        return
    workdir = paths.anywhere(workdir, '--workdir')
    try:
        for name, content in files.items():
            storage.write(workdir / name, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(_not_writable(workdir, error)) from None


def lock(folder: str | os.PathLike) -> BinaryIO | None:
    """Locks the folder until the returned file is closed or this process ends in any way.

    Returns None while another process holds the lock. Raises UserError if the folder cannot be
    written or its file system has no locks.
    """
    try:
        return _open_lock(folder)
    except OSError as error:
        raise UserError(
            f'{folder} cannot be locked: {type(error).__name__}: {error}. Its file system seems to '
            'lack locks (flock); choose a folder on another one with --workdir'
        ) from None


def training_lock(folder: str | os.PathLike) -> contextlib.AbstractContextManager:
    """Locks a workdir for training, in process 0 and if its file system has locks.

    A bucket has none: there the newest process owns the run (`checkpoint_folder.Claim`). Raises
    Unavailable while another process trains there.
    """
    if jax.process_index() != 0 or not storage.is_local(paths.anywhere(folder, '--workdir')):
        return contextlib.nullcontext()
    try:
        file = _open_lock(folder)
    except OSError:
        return contextlib.nullcontext()
    if file is None:
        raise Unavailable(
            f'Another process trains in {folder}: wait until it ends, stop it, or choose another '
            'folder with --workdir'
        )
    return file


def _open_lock(folder: str | os.PathLike) -> BinaryIO | None:
    """Like `lock`, but raises OSError if locking itself fails."""
    folder = paths.local(folder, '--workdir')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / '.lock', 'ab')  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise UserError(_not_writable(folder, error)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


def is_locked(folder: str | os.PathLike) -> bool:
    """Whether any process, including this one, holds the lock of the folder."""
    try:
        with open(paths.local(folder, '--workdir') / '.lock', 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never locked
        return False
    return False


def check_writable(folder: str | os.PathLike, flag: str = 'workdir') -> None:
    """Creates the folder; raises UserError naming the flag if files cannot be written there."""
    probe = paths.anywhere(folder, f'--{flag}') / f'.probe.{secrets.token_hex(6)}'
    if not storage.is_local(probe):
        try:
            storage.write(probe, b'rf_jax')
            storage.delete(probe)
        except UserError as error:
            text = str(error).replace(os.fspath(probe), f'--{flag}={os.fspath(folder)}')
            raise type(error)(text) from None
        return
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'rf_jax')
        probe.unlink()
    except OSError as error:
        raise UserError(_not_writable(folder, error, flag)) from None


def _not_writable(folder, error: OSError, flag: str = 'workdir') -> str:
    reason = f'{type(error).__name__}: {error}'
    return (
        f'The working folder {folder} cannot be written: {reason}. Choose another with --{flag}, '
        'or free space there.'
    )
