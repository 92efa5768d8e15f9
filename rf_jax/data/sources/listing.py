"""Files that list the images of a folder: captions.jsonl, or the metadata of Hugging Face's
imagefolder; and the paths in them, spelled as any system does, and never outside the folder.
"""

import codecs
import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from rf_jax.data import maps
from rf_jax.data.records import BadImage, clean
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError

NAMES = ('captions.jsonl', 'metadata.jsonl', 'metadata.csv')  # the first one found is read
EXAMPLE = '{"file": "cats/001.jpg", "caption": "a cat on a mat", "tags": ["cat", "mat"]}'
LINKS = '+links'  # folder+links:/path follows symbolic links that leave the folder
OPTIONAL = ('tags', 'kind', 'questions')  # fields of an entry
_FILE_FIELDS = ('file', 'file_name', 'filename', 'image', 'path')
_CAPTION_FIELDS = ('caption', 'captions', 'text', 'label')
# A string, or a comma followed by nothing but a closing bracket.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*")|,(?=\s*[}\]])')


def entries(path: Path, data: bytes) -> Iterator[tuple[str, dict | str]]:
    """(place, entry without nulls) of each entry of the file `path`, or (place, what is wrong).

    Raises UserError where the whole file cannot be read.
    """
    # Lines are decoded one by one, so that a bad line does not affect the others.
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = paths.decode_text(data).encode()
        except UnicodeError as error:
            raise UserError(
                f'{path} starts with a UTF-16 byte-order mark but does not decode: {error}'
            ) from None
    data = data.removeprefix(codecs.BOM_UTF8)
    if path.suffix == '.csv':
        found = _csv(path, data)
    elif data.lstrip()[:1] == b'[':
        found = _array(path, data)
    else:
        found = _lines(data)
    for place, entry in found:
        if isinstance(entry, dict):
            entry = {key: value for key, value in entry.items() if value is not None}
        elif not isinstance(entry, str):
            entry = f'expected {{...}}, not {type(entry).__name__}'
        yield place, entry


def fields(entry: dict) -> tuple[str, dict]:
    """(file, fields of a Record) of an entry. Raises ValueError that says what is wrong."""
    name = next((key for key in _FILE_FIELDS if key in entry), None)
    if name is None:
        raise ValueError(f'no "file" (there is {", ".join(map(str, entry)) or "nothing"})')
    if not isinstance(entry[name], str):
        raise ValueError(f'"{name}" is not a string')
    return entry[name], texts(entry)


def texts(entry: dict) -> dict:
    """The fields of a Record that an entry has. Raises ValueError that says what is wrong.

    All but the caption are optional, and left out where they have another form: metadata from
    elsewhere uses their names for other things.
    """
    return {
        'captions': _captions(entry),
        'tags': _strings(entry.get('tags')) or (),
        'kind': ' '.join(_strings(entry.get('kind')) or ()),
        'questions': _pairs(entry.get('questions')),
    }


def ignored(entry: dict, fields: dict) -> list[str]:
    """Optional fields that an entry has, but of which nothing is in its `texts`, `fields`."""
    empty = (None, '', [], {}, ())
    return [name for name in OPTIONAL if entry.get(name) not in empty and not fields[name]]


def _captions(entry: dict) -> tuple[str, ...]:
    """Of the first field that has some; () if there are none. Raises ValueError as `texts`."""
    found = {name: _strings(entry[name]) for name in _CAPTION_FIELDS if name in entry}
    usable = [captions for captions in found.values() if captions]
    if not usable and None in found.values():
        name = next(name for name, captions in found.items() if captions is None)
        raise ValueError(f'"{name}" is neither a string nor a list of strings')
    return usable[0] if usable else ()


def named_maps(entry: dict) -> dict[str, str]:
    """{name of `maps.DRAWN`: file} of an entry. Raises ValueError that says what is wrong."""
    found = {name: entry[name] for name in maps.DRAWN if name in entry}
    for name, file in found.items():
        if not isinstance(file, str):
            raise ValueError(f'"{name}" is not a string')
    return found


def _lines(data: bytes) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip() not in (b'', b'[', b']'):
            yield f'line {number}', _line(line)


def _line(line: bytes) -> object:
    try:
        return _json(line.decode('utf-8-sig').strip().rstrip(','))
    except (ValueError, RecursionError) as error:
        return f'{error}'


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        tidy = _TRAILING_COMMA.sub(lambda match: match[1] or '', text)
        if tidy == text:
            raise
    return json.loads(tidy)


def _array(path: Path, data: bytes) -> Iterator[tuple[str, object]]:
    try:
        return [(f'entry {n}', entry) for n, entry in enumerate(_json(data.decode()), 1)]
    except (ValueError, RecursionError) as error:
        lines = [line.strip(b' \t\r\n,') for line in data.splitlines()]
        lines = [line for line in lines if line not in (b'', b'[', b']')]
        if lines and all(line.startswith(b'{') and line.endswith(b'}') for line in lines):
            return _lines(data)  # so that a bad line does not affect the others
        raise UserError(f'{path} starts as a JSON array but does not parse: {error}') from None


def _csv(path: Path, data: bytes) -> Iterator[tuple[str, object]]:
    try:
        rows = csv.DictReader(io.StringIO(data.decode(), newline=''), strict=True)
        return [
            (f'row {n}', {k: v or None for k, v in row.items()}) for n, row in enumerate(rows, 2)
        ]
    except (ValueError, csv.Error) as error:
        raise UserError(f'{path} cannot be read as CSV in UTF-8 or UTF-16: {error}') from None


def _strings(value) -> tuple[str, ...] | None:
    """One string or several, cleaned, without empty ones and nulls; None if it is neither."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        return None
    values = [each for each in values if each is not None]
    if not all(isinstance(each, str) for each in values):
        return None
    return tuple(text for text in map(clean, values) if text)


def _pairs(questions) -> tuple[tuple[str, str], ...]:
    """(question, answer) pairs, without what is no pair or has an empty half."""
    if not isinstance(questions, list | tuple):
        return ()
    given = [each for each in questions if isinstance(each, dict)]
    pairs = [(each.get('question'), each.get('answer')) for each in given]
    cleaned = [tuple(map(clean, pair)) for pair in pairs if all(isinstance(s, str) for s in pair)]
    return tuple(pair for pair in cleaned if all(pair))


class Outside(BadImage):
    """A path that leaves its folder."""


def inside(root: Path, name: str, follow_links: bool) -> Path:
    """The absolute path of `name` in the folder `root`; `..` is taken lexically.

    If there is no such file, Windows separators and composed or decomposed accents (as on macOS)
    are tried too. Raises Outside.
    """
    candidates = [Path(os.path.abspath(root / spelling)) for spelling in _spellings(name)]
    path = next((path for path in candidates if os.path.lexists(path)), candidates[0])
    real_root = os.path.realpath(root)
    if not path.is_relative_to(os.path.abspath(root)) and not path.is_relative_to(real_root):
        raise Outside('paths must be relative to the folder and stay inside it')
    if follow_links or '\0' in name or Path(os.path.realpath(path)).is_relative_to(real_root):
        return path
    raise Outside(
        f'a symbolic link leads out of the folder (folder{LINKS}:/path in data.sources follows it)'
    )


def _spellings(name: str) -> Iterator[str]:
    for each in dict.fromkeys((name, name.replace('\\', '/'))):
        yield each
        yield unicodedata.normalize('NFC', each)
        yield unicodedata.normalize('NFD', each)
