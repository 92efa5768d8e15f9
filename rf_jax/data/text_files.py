"""Text files as other programs write them: with a byte-order mark or any line endings."""

import codecs
import os
from pathlib import Path

_MARKS = {
    codecs.BOM_UTF8: 'utf-8',
    codecs.BOM_UTF16_LE: 'utf-16-le',
    codecs.BOM_UTF16_BE: 'utf-16-be',
}


def read(path: str | os.PathLike) -> str:
    r"""The text of a UTF-8 file, or of a UTF-16 file that begins with a byte-order mark.

    The mark is removed, and every line ends with \n. Raises OSError and UnicodeDecodeError.
    """
    return decode(Path(path).read_bytes())


def decode(data: bytes) -> str:
    """As `read`, of the bytes of a file."""
    mark = next((mark for mark in _MARKS if data.startswith(mark)), b'')
    text = data[len(mark) :].decode(_MARKS.get(mark, 'utf-8'))
    return text.replace('\r\n', '\n').replace('\r', '\n')


def lines(path: str | os.PathLike) -> list[str]:
    """The lines of a text file that are not blank. Raises as `read`.

    Not str.splitlines, which also splits at U+2028, U+0085 and others within a sentence.
    """
    return [line for line in read(path).split('\n') if line.strip()]
