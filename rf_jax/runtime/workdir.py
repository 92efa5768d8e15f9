"""The folder of a run: small files beside the checkpoints, each whole or not at all."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Mapping
from typing import BinaryIO

import jax

from rf_jax.runtime import paths
from rf_jax.runtime.errors import Unavailable, UserError


def write_run_files(workdir: str | os.PathLike, files: Mapping[str, str | bytes]) -> None:
    """Writes files (name -> content); only the first host does. Raises UserError."""
    if jax.process_index() != 0:
        return
    workdir = paths.local(workdir, '--workdir')
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            # Processes of two hosts may have one number.
            temporary = workdir / f'.{name}.{secrets.token_hex(6)}.tmp'
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            temporary.replace(workdir / name)
    except OSError as error:
        raise UserError(_refused(workdir, error)) from None


def claim(folder: str | os.PathLike) -> BinaryIO | None:
    """The folder for this process alone until what is returned is closed, or the process ends in
    whatever way; None while another process has it. Raises UserError if it cannot be written or
    its file system has no locks.
    """
    try:
        return _lock(folder)
    except OSError as error:
        raise UserError(
            f'{folder} cannot be locked: {type(error).__name__}: {error}. Its file system seems to '
            'have no locks (flock); choose a folder on another with --workdir'
        ) from None


def alone(folder: str | os.PathLike) -> contextlib.AbstractContextManager:
    """Keeps a second training out of a run's folder; the first host does, where the file system
    has locks. Raises Unavailable while another process trains there.
    """
    if jax.process_index() != 0:
        return contextlib.nullcontext()
    try:
        file = _lock(folder)
    except OSError:
        return contextlib.nullcontext()
    if file is None:
        raise Unavailable(
            f'Another process trains in {folder}: wait for its end, stop it, or choose another '
            'folder with --workdir'
        )
    return file


def _lock(folder: str | os.PathLike) -> BinaryIO | None:
    """As `claim`; OSError of the lock itself passes."""
    folder = paths.local(folder, '--workdir')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / '.claim', 'ab')  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise UserError(_refused(folder, error)) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


def claimed(folder: str | os.PathLike) -> bool:
    """Whether a process, perhaps this one, has the folder for itself."""
    try:
        with open(paths.local(folder, '--workdir') / '.claim', 'rb') as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never claimed
        return False
    return False


def check_writable(folder: str | os.PathLike, flag: str = 'workdir') -> None:
    """Makes the folder; raises UserError naming the flag if files cannot be written there."""
    probe = paths.local(folder, f'--{flag}') / f'.probe.{secrets.token_hex(6)}'
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'rf_jax')
        probe.unlink()
    except OSError as error:
        raise UserError(_refused(folder, error, flag)) from None


def _refused(folder, error: OSError, flag: str = 'workdir') -> str:
    reason = f'{type(error).__name__}: {error}'
    return (
        f'The working folder {folder} cannot be written: {reason}. Choose another with --{flag}, '
        'or free space there.'
    )
