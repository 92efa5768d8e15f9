"""Tar files as WebDataset has them: the files of a sample are consecutive and share a key, which is
their name up to the first dot.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from rf_jax.data.shards.index import BLOCK

_BUFFER = 2**20  # bytes read at a time
_COMPRESSED = {  # first bytes that no name of a file has: a tar file begins with one
    b'\x1f\x8b': ('gzip', 'gunzip'),
    b'\x28\xb5\x2f\xfd': ('zstd', 'unzstd'),
    b'\xfd7zXZ': ('xz', 'unxz'),
}


class TarWriter:
    """Writes samples one after another; equal samples give equal bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.bytes = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> tuple[int, int]:
        """Writes `{key}.{extension}` for each member; (offset, length) in blocks of 512 bytes."""
        start = self.bytes
        for extension, data in members.items():
            info = tarfile.TarInfo(f'{key}.{extension}')
            info.size, info.mode = len(data), 0o644
            self._write(info.tobuf(tarfile.PAX_FORMAT, 'utf-8', 'surrogateescape'))
            self._write(data)
            self._write(b'\0' * (-len(data) % BLOCK))
        return start // BLOCK, (self.bytes - start) // BLOCK

    def end(self) -> None:
        """Writes the two empty blocks that end a tar file."""
        self._write(b'\0' * (2 * BLOCK))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes += len(data)


class Unsuitable(ValueError):
    """A tar file that is not damaged, but of a form that cannot be read."""


class _Strict(tarfile.TarInfo):
    """Raises for a file that ends without the two empty blocks, or goes on with something else,
    where tarfile takes the end of what it can read for the end of the archive.
    """

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            while rest := archive.fileobj.read(_BUFFER):
                if rest.strip(b'\0'):
                    raise Unsuitable(
                        'several tar files in one, or goes on after its end, and only the first '
                        'would be read: give them one by one, or join them with tar --concatenate'
                    ) from None
            raise
        except tarfile.HeaderError as error:
            raise ValueError(f'damaged, truncated or still being written: {error}') from None


def _text(key: str) -> str:
    """A key as text: the bytes of a name need not be UTF-8."""
    return key.encode('utf-8', 'replace').decode()


def split(name: str) -> tuple[str, str]:
    """(key, extension) of a file: 'a/b.0', 'jpg' for a name a/b.0.jpg is ('a/b', '0.jpg')."""
    folder, slash, base = name.rpartition('/')
    key, _, extension = base.partition('.')
    return f'{folder}{slash}{key}', extension.lower()


def _hidden(name: str) -> bool:
    """Whether a file is no part of any sample: macOS puts ._a.jpg beside a.jpg, and .DS_Store."""
    return name.rpartition('/')[2].startswith('.')


def members(data: bytes) -> tuple[str, dict[str, bytes]]:
    """(key, {extension: content}) of the one sample that a range of a tar file holds.

    Raises ValueError if the range is not whole members of one key.
    """
    found: dict[str, bytes] = {}
    keys = set()
    for name, start, size in _plain_files(data) or _files(data):
        if _hidden(name):
            continue
        key, extension = split(name)
        keys.add(key)
        found[extension] = data[start : start + size]
        if len(found[extension]) < size:
            raise ValueError(f'{name} is truncated')
    if len(keys) != 1:
        raise ValueError(f'the files of one sample were expected, not of {sorted(keys) or "none"}')
    return _text(keys.pop()), found


def _files(data: bytes) -> list[tuple[str, int, int]]:
    """(name, start, size) of the files in a range of a tar file."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as archive:
            return [(i.name, i.offset_data, i.size) for i in archive if i.isfile()]
    except tarfile.TarError as error:
        raise ValueError(f'no tar file begins there: {error}') from None


def _plain_files(data: bytes) -> list[tuple[str, int, int]]:
    """As `_files`, where names and sizes stand in plain headers, in a tenth of the time; [] where
    tarfile must read them, or where something is wrong.
    """
    found, at = [], 0
    while at < len(data):
        header, at = data[at : at + BLOCK], at + BLOCK
        if not header.strip(b'\0'):
            break
        try:
            size = int(header[124:136].strip(b'\0 '), 8)
            checksum = int(header[148:156].strip(b'\0 '), 8)
        except ValueError:
            return []
        if checksum != sum(header) - sum(header[148:156]) + 8 * ord(' ') or header[345]:
            return []
        kind, content = header[156:157], data[at : at + size]
        if kind in (b'0', b'\0'):
            found.append((header[:100].rstrip(b'\0').decode('utf-8', 'surrogateescape'), at, size))
        elif kind != b'x' or b' path=' in content or b' size=' in content:  # of the next file
            return []
        at += -(-size // BLOCK) * BLOCK
    return found


def check_uncompressed(begin: bytes) -> None:
    """Raises Unsuitable for the first bytes of a compressed file."""
    for magic, (name, tool) in _COMPRESSED.items():
        if begin.startswith(magic):
            raise Unsuitable(
                f'compressed with {name}, so it cannot be read at random: unpack it ({tool})'
            )


def scan(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes], int, int]]:
    """(key, members, offset, length in blocks) of every sample of a tar file, in order.

    Reads from start to end, without seeking. Raises ValueError where the file is damaged or ends
    too early, and Unsuitable.
    """
    key, found, start, end = None, {}, 0, 0
    try:
        with tarfile.open(fileobj=file, mode='r|', tarinfo=_Strict) as archive:
            for info in archive:
                archive.members = []  # which would hold every file of the archive
                if not info.isfile() or _hidden(info.name):
                    continue
                own, extension = split(info.name)
                if own != key:
                    if found:
                        yield _text(key), found, start, end - start
                    key, found, start = own, {}, end
                data = archive.extractfile(info).read()
                if len(data) < info.size:
                    raise ValueError(f'{info.name} is truncated')
                found[extension] = data
                end = -(-(info.offset_data + info.size) // BLOCK)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f'damaged, truncated or still being written: {error}') from None
    if found:
        yield _text(key), found, start, end - start
