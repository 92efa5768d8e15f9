"""A file on a disk or in a bucket, as a Python file object."""

import io
import os

from rf_jax.runtime import storage


class Ranged(io.RawIOBase):
    """Seekable; each read is one request."""

    def __init__(self, path: str):
        self._path, self._at, self._size = path, 0, storage.size(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer) -> int:
        length = max(0, min(len(buffer), self._size - self._at))
        if length:
            buffer[:length] = storage.read_range(self._path, self._at, length)
        self._at += length
        return length
