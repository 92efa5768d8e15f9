"""Files as users name and write them: `~` is expanded, and gs:// or s3:// is a bucket where one can
be used; text may have a byte-order mark and any line endings.
"""

import codecs
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from etils import epath

from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # pathlib reduces gs://bucket to one slash
_BUCKET = re.compile(r'(gs|s3):/{1,2}')
_PACKAGED = Path(__file__).parents[2]  # parent of rf_jax/ and configs/, installed or cloned
_MARKS = {
    codecs.BOM_UTF8: 'utf-8',
    codecs.BOM_UTF16_LE: 'utf-16-le',
    codecs.BOM_UTF16_BE: 'utf-16-be',
}


AnyPath = Path | epath.Path  # of this machine, or of a bucket: the same methods
P = TypeVar('P', Path, AnyPath)


def local(path: str | os.PathLike, field: str) -> Path:
    """A path of this machine, `~` expanded; `field` names the flag, config field or argument.

    Raises UserError, naming the field, where `expanded` raises ValueError.
    """
    return _of_field(expanded, path, field)


def anywhere(path: str | os.PathLike, field: str) -> AnyPath:
    """A path of this machine, `~` expanded, or of a gs:// or s3:// bucket.

    Raises UserError, naming the field, where `expanded_anywhere` raises ValueError.
    """
    return _of_field(expanded_anywhere, path, field)


def _of_field(read: Callable[[str | os.PathLike], P], path: str | os.PathLike, field: str) -> P:
    try:
        return read(path)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'{field}={os.fspath(path)} {error}') from None


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` expanded.

    Raises ValueError, with the reason, for a URL (gs://, s3://, ...), an empty path or the home
    folder of an unknown user.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError('is empty; expected a path')
    if _URL.match(text):
        raise ValueError(
            'is a URL; expected a path on this machine or on a network file system (buckets hold '
            'what docs/usage.md#buckets lists)'
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f'cannot be read: {error}') from None


def expanded_anywhere(path: str | os.PathLike) -> AnyPath:
    """As `expanded`, and the address of a bucket. Raises UserError if its libraries are missing."""
    text = os.fspath(path)
    if not (found := _BUCKET.match(text)):
        return expanded(path)
    text = f'{found[1]}://{text[found.end() :].rstrip("/")}'
    if storage.is_local(text):
        raise ValueError(f'names no bucket; expected {found[1]}://BUCKET/FOLDER')
    return storage.as_epath(text)


def absolute(path: AnyPath) -> AnyPath:
    """The path from the root of this machine; that of a bucket as it is."""
    return path.absolute() if storage.is_local(path) else path


def config_file(text: str, field: str = '--config') -> str:
    """Path of a config file, with its variant if any (`configs/emoji.py:long`).

    A relative path below configs/ that does not exist resolves to the config installed with rf_jax.
    Raises UserError as `local` does.
    """
    local(text, field)
    name, colon, variant = text.partition(':')
    path = Path(name).expanduser()
    if not path.exists() and path.parts[:1] == ('configs',) and (_PACKAGED / path).exists():
        path = _PACKAGED / path
    return f'{path}{colon}{variant}'


def read_text(path: str | os.PathLike) -> str:
    r"""The text of a UTF-8 file, or of a UTF-16 file that begins with a byte-order mark.

    The mark is removed, and every line ends with \n. Raises OSError and UnicodeDecodeError.
    """
    return decode_text(Path(path).read_bytes())


def decode_text(data: bytes, errors: str = 'strict') -> str:
    """As `read_text`, of the bytes of a file; `errors` as bytes.decode takes them."""
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b'')
    text = data[len(mark) :].decode(_MARKS.get(mark, 'utf-8'), errors)
    return text.replace('\r\n', '\n').replace('\r', '\n')


def text_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank. Raises as `read_text`.

    Not str.splitlines, which also splits at U+2028, U+0085 and others within a sentence.
    """
    return [line for line in read_text(path).split('\n') if line.strip()]
