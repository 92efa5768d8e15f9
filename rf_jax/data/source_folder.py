"""Data from the user's disk: a folder of captioned pictures, and plain text."""

import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rf_jax.data import text_files
from rf_jax.data.images import BadPicture, header_size, read_rgb
from rf_jax.data.records import Record, Skips, clean
from rf_jax.runtime.errors import UserError

_CAPTION_FIELDS = ('caption', 'captions', 'text', 'label')
_EXAMPLE = '{"file": "cats/001.jpg", "caption": "a cat on a mat", "tags": ["cat", "mat"]}'
_SCAN_THREADS = 16  # headers wait for the disk, not for the processor


class FolderSource:
    """Pictures and `captions.jsonl`, one JSON object a line:

        {"file": ..., "caption": one or a list, "tags": [...], "kind": ...,
         "questions": [{"question": ..., "answer": ...}]}

    `file` is relative to the folder; all but file and caption may be left out, or null. Lines that
    cannot be used are skipped, counted in `.skipped` and named in the log. Raises UserError.
    """

    def __init__(self, path: str, max_pixels: int):
        self.name = f'folder:{path}'
        self._max_pixels = max_pixels
        self._skips = Skips()
        try:
            self._root = Path(path).expanduser()
            listing = self._root / 'captions.jsonl'
            lines = listing.read_bytes().splitlines() if path and listing.is_file() else None
        except (OSError, RuntimeError) as error:
            raise UserError(f'data.sources: {self.name} cannot be read: {error}') from error
        if lines is None:
            raise UserError(
                f'data.sources: {self.name} needs a file captions.jsonl in that folder (looked for '
                f'{listing.absolute()}), one line a picture, such as {_EXAMPLE}'
            )
        parsed = [
            self._parse(line, f'line {number}')
            for number, line in enumerate(lines, 1)
            if line.strip()
        ]
        self._files: list[Path] = []
        self._records: list[Record] = []
        self._scan([entry for entry in parsed if entry is not None])
        self.skipped = self._skips.counts
        if not self._records:
            raise UserError(
                f'data.sources: {self.name} has no usable picture; skipped: '
                f'{self._skips or "none"}. A line of captions.jsonl looks like {_EXAMPLE}'
            )
        self._skips.log(self.name, len(self))

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def picture(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadPicture."""
        return read_rgb(self._files[i], self._max_pixels)

    def _parse(self, line: bytes, where: str) -> tuple[str, dict] | None:
        """(file, fields of its Record), or None and a skip counted."""
        try:
            entry = json.loads(line.decode('utf-8-sig'))
            entry = {key: value for key, value in entry.items() if value is not None}
            file = entry['file']
            # Lexical on purpose: a link inside the folder is the user's own doing.
            inside = os.path.normpath(os.path.join('root', file)).split(os.sep)[0] == 'root'
            fields = {
                'captions': _strings(next((entry[k] for k in _CAPTION_FIELDS if k in entry), ())),
                'tags': _strings(entry.get('tags', ())),
                'kind': clean(entry.get('kind', '')),
                'questions': _pairs(entry.get('questions', ())),
            }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._skips.add('malformed line', where)
            return None
        if not inside:
            self._skips.add('file outside the folder', where)
        elif not fields['captions']:
            self._skips.add('empty caption', where)
        else:
            return file, fields
        return None

    def _scan(self, entries: list[tuple[str, dict]]) -> None:
        """Keeps the entries whose picture has a sound header and is not enormous."""

        def size(entry):
            try:
                return header_size(self._root / entry[0])
            except BadPicture as error:
                return str(error)

        with ThreadPoolExecutor(_SCAN_THREADS) as pool:
            sizes = list(pool.map(size, entries))
        for (file, fields), found in zip(entries, sizes):
            if isinstance(found, str):
                self._skips.add('bad picture', f'{file}: {found}')
            elif found[0] * found[1] > self._max_pixels:
                self._skips.add('more than data.max_pixels', file)
            else:
                self._files.append(self._root / file)
                self._records.append(Record(*found, **fields))


class TextSource:
    """A text file, or every .txt below a folder: one document a paragraph, no pictures.

    Blank lines separate paragraphs. Files that cannot be read or decoded (UTF-8, or UTF-16 with a
    byte-order mark) are skipped and counted. Raises UserError.
    """

    def __init__(self, path: str, max_pixels: int):
        del max_pixels  # no pictures here
        self.name = f'text:{path}'
        try:
            root = Path(path).expanduser()
            if not path or not root.exists():
                raise UserError(
                    f'data.sources: {self.name} is neither a text file nor a folder (looked for '
                    f'{root.absolute()})'
                )
            files = [root]
            if root.is_dir():
                os.listdir(root)  # raises where rglob just finds nothing
                files = sorted(root.rglob('*.txt'))
        except (OSError, RuntimeError) as error:
            raise UserError(f'data.sources: {self.name} cannot be read: {error}') from error
        skips = Skips()
        self._paragraphs: list[str] = []
        for file in files:
            try:
                found = list(_paragraphs(io.StringIO(text_files.read(file))))
            except OSError as error:
                skips.add('cannot be read', str(error))
                continue
            except UnicodeDecodeError:
                skips.add('not UTF-8 text', str(file))
                continue
            self._paragraphs.extend(found)
        self.skipped = skips.counts
        if not self._paragraphs:
            raise UserError(
                f'data.sources: {self.name} has no text; expected UTF-8 paragraphs parted by blank '
                f'lines in one file, or in .txt files of a folder; skipped: {skips or "none"}'
            )
        skips.log(self.name, len(self))

    def __len__(self) -> int:
        return len(self._paragraphs)

    def record(self, i: int) -> Record:
        return Record(0, 0, captions=(self._paragraphs[i],))

    def picture(self, i: int) -> np.ndarray:
        raise BadPicture(f'{self.name} has no pictures')


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Cleaned. Line by line: a regular expression over gigabytes would hold the interpreter, and
    with it the heartbeat of this process, for minutes.
    """
    for blank, group in itertools.groupby(lines, key=str.isspace):
        if not blank:
            yield clean(''.join(group))


def _strings(value: str | Sequence[str]) -> tuple[str, ...]:
    """One string or several, cleaned, without the empty ones; raises TypeError for the rest."""
    values = (value,) if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        raise TypeError
    return tuple(text for text in map(clean, values) if text)


def _pairs(questions: Sequence[dict]) -> tuple[tuple[str, str], ...]:
    """(question, answer) of each, without those where one is empty."""
    pairs = ((clean(each['question'] or ''), clean(each['answer'] or '')) for each in questions)
    return tuple(pair for pair in pairs if all(pair))
