"""Whole files and ranges of files, on a disk."""

import os
import secrets
from pathlib import Path


def is_local(path: str | os.PathLike) -> bool:
    return '://' not in os.fspath(path)


def read(path) -> bytes:
    return Path(path).read_bytes()


def read_range(path, offset: int, length: int) -> bytes:
    with open(path, 'rb') as file:
        file.seek(offset)
        data = file.read(length)
    if len(data) < length:
        raise OSError(f'{path} is truncated')
    return data


def size(path) -> int:
    return Path(path).stat().st_size


def write(path, data: bytes) -> None:
    temporary = Path(f'{path}.{secrets.token_hex(6)}.tmp')
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(data)
    temporary.replace(path)


def exists(path) -> bool:
    return Path(path).exists()


def names(folder) -> list[str]:
    return sorted(p.name for p in Path(folder).iterdir()) if Path(folder).is_dir() else []
