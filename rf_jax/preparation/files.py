"""Large files, written whole or not at all."""

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from rf_jax.runtime import storage

_TEMPORARY = '.tmp'


def scratch(path: str) -> BinaryIO:
    """An unnamed file to write and read again: beside `path`, or on this machine if that is in a
    bucket; gone when it is closed.
    """
    folder = _folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.NamedTemporaryFile(dir=folder, prefix='.', suffix=_TEMPORARY)


@contextlib.contextmanager
def new(path: str) -> Iterator[BinaryIO]:
    """A local file to write, which becomes `path` at the end of the block if nothing is raised."""
    folder = _folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f'.{secrets.token_hex(6)}{_TEMPORARY}'
    try:
        with open(temporary, 'w+b') as file:
            yield file
            file.flush()
            if storage.is_local(path):
                os.fsync(file.fileno())
                temporary.replace(path)
            else:
                storage.upload(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _folder(path: str) -> Path:
    return temporary_folder(path.rpartition('/')[0])


def temporary_folder(folder: str) -> Path:
    """Where files for a folder are begun: there, or on this machine if it is in a bucket."""
    if storage.is_local(folder):
        return Path(folder)
    name = hashlib.blake2b(f'{os.getuid()} {folder}'.encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f'rf_jax.prepare.{name}'


def remove_unfinished(folder: str) -> None:
    """Removes what a process that was killed while writing here has left on this machine."""
    for path in temporary_folder(folder).glob(f'.*{_TEMPORARY}'):
        path.unlink(missing_ok=True)


def remove_temporary_folder(folder: str) -> None:
    """Removes what is left on this machine of a bucket's folder, once the set is finished."""
    if not storage.is_local(folder):
        storage.delete_folder(temporary_folder(folder))
