"""Bytes of files on this machine, in gs:// and in s3:// buckets, by the same few functions.

All can be called from many threads. They raise FileNotFoundError for what is not there, UserError
for errors that retrying does not fix (no permission, no such bucket, a library that is not
installed), Unavailable once all tries have failed, and for local files OSError as usual.
"""

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from etils import epath

from rf_jax.runtime import buckets

_PIECE = 2**24  # bytes of a large file that are sent at a time; s3fs sends ten at once


def is_local(path: str | os.PathLike) -> bool:
    """Whether a path is on this machine, not in a bucket."""
    return not buckets.ADDRESS.match(os.fspath(path))


def read(path: str | os.PathLike) -> bytes:
    """The whole file."""
    if is_local(path):
        return Path(path).read_bytes()
    return _read(path, None)


def read_range(path: str | os.PathLike, offset: int, length: int) -> bytes:
    """Exactly `length` bytes from `offset`; UserError if the file ends before."""
    if not length:
        return b''
    if is_local(path):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # `open` takes as long again
        try:
            data = os.pread(file, length, offset)
            while 0 < len(data) < length:  # Linux reads 2 GiB at a time at most
                more = os.pread(file, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        finally:
            os.close(file)
    else:
        data = _read(path, slice(offset, offset + length))
    if len(data) != length:
        raise buckets.too_short(path, offset + length)
    return data


def size(path: str | os.PathLike) -> int:
    """Bytes of a file."""
    if is_local(path):
        return os.stat(path).st_size
    return buckets.with_retries(path, lambda: as_epath(path).stat().length)


def write(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that others see whole or not at all; makes its folder."""
    if not is_local(path):
        bucket, key = _split(path)
        buckets.result(path, lambda: bucket.write(key, bytes(data)))
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on two hosts may have the same pid.
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(6)}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else it may be empty after the machine has stopped
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def upload(file: str | os.PathLike, path: str | os.PathLike) -> None:
    """Copies a large file to a bucket, a piece at a time; others see it once it is whole."""
    files, to = buckets.file_system(path)
    buckets.with_retries(path, lambda: files.put_file(os.fspath(file), to, chunksize=_PIECE))


def create(path: str | os.PathLike, data: bytes) -> bool:
    """Writes a file if there is none of that name; False if there is one, even if another process
    creates it at the same time.
    """
    if is_local(path):
        try:
            with open(path, 'xb') as file:
                file.write(data)
        except FileExistsError:
            return False
        return True
    if exists(path):  # some servers take no conditions; Google's and Amazon's do
        return False
    bucket, key = _split(path)
    stamp = buckets.result(path, lambda: bucket.write(key, data, if_equal=buckets.MISSING))
    return bool(stamp.generation)


def delete(path: str | os.PathLike) -> None:
    """Deletes a file, if it is there."""
    if is_local(path):
        Path(path).unlink(missing_ok=True)
    else:
        bucket, key = _split(path)
        buckets.result(path, lambda: bucket.write(key, None))


def delete_folder(folder: str | os.PathLike) -> None:
    """Deletes a folder and all in it, if it is there."""
    if is_local(folder):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    else:
        buckets.with_retries(folder, lambda: as_epath(folder).rmtree(missing_ok=True))


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a file or a folder. A bucket's folder exists while it has files."""
    if is_local(path):
        return os.path.exists(path)
    try:
        buckets.with_retries(path, lambda: as_epath(path).stat())
    except FileNotFoundError:
        return False
    return True


def is_folder(path: str | os.PathLike) -> bool:
    """Whether there is a folder. A bucket's folder exists while it has files."""
    if is_local(path):
        return os.path.isdir(path)
    try:
        return buckets.with_retries(path, lambda: as_epath(path).stat().is_directory)
    except FileNotFoundError:
        return False


def names(folder: str | os.PathLike) -> list[str]:
    """Sorted names of the files and folders in a folder; [] if there is none, as a bucket cannot
    tell that from an empty one.
    """
    try:
        if is_local(folder):
            return sorted(os.listdir(folder))
        found = buckets.with_retries(
            folder, lambda: [path.name for path in as_epath(folder).iterdir()]
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
    own = as_epath(folder).name  # some programs write an empty object as a mark of the folder
    return sorted(set(found) - {'', own}) if own in found else sorted(found)


def list_files(folder: str | os.PathLike) -> dict[str, int]:
    """{path from the folder: bytes} of all files in a folder and in those below it, in order."""
    if is_local(folder):
        below = (path for path in sorted(Path(folder).rglob('*')) if path.is_file())
        return {str(path.relative_to(folder)): path.stat().st_size for path in below}
    files, top = buckets.file_system(folder)
    found = buckets.with_retries(folder, lambda: files.find(top, detail=True))
    return {name[len(top) + 1 :]: each['size'] for name, each in sorted(found.items())}


def copy(folder: str | os.PathLike, other: str | os.PathLike) -> None:
    """Copies the small files of a folder and of those below it, from anywhere to anywhere."""
    for name in list_files(folder):
        write(f'{os.fspath(other)}/{name}', read(f'{os.fspath(folder)}/{name}'))


def copy_within_bucket(folder: str | os.PathLike, other: str | os.PathLike) -> None:
    """Copies the files of a bucket's folder to another of that bucket, where the bytes are."""
    (files, top), (_, to) = buckets.file_system(folder), buckets.file_system(other)
    for name in list_files(folder):
        buckets.with_retries(
            folder, lambda name=name: files.cp_file(f'{top}/{name}', f'{to}/{name}')
        )


def as_epath(path: str | os.PathLike) -> epath.Path:
    """The path as an epath. Make them only here: this sets up the libraries that they need."""
    if not is_local(path):
        buckets.prepare()
    return epath.Path(path)


def _split(path: str | os.PathLike) -> tuple[Any, str]:
    """The bucket, and the name of the object there."""
    text = os.fspath(path)
    name = buckets.ADDRESS.match(text)[0]
    return buckets.store(name), text[len(name) + 1 :]


def _read(path: str | os.PathLike, part: slice | None) -> bytes:
    bucket, key = _split(path)
    found = buckets.result(path, lambda: bucket.read(key, byte_range=part))
    if found.state != 'value':
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    return found.value
