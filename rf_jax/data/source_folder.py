"""Data from the user's disk: a folder of captioned pictures, and plain text."""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from rf_jax.data import listing, text_files
from rf_jax.data.images import BadPicture, header_size, read_rgb
from rf_jax.data.inside import LINKS, Outside, inside
from rf_jax.data.records import Record, Skips, clean
from rf_jax.runtime.errors import UserError

_SCAN_THREADS = 16  # headers wait for the disk, not for the processor


class FolderSource:
    """Pictures and `captions.jsonl`, one JSON object a line:

        {"file": ..., "caption": one or a list, "tags": [...], "kind": ...,
         "questions": [{"question": ..., "answer": ...}]}

    `file` is a path in the folder; all but file and caption may be left out, or null. A JSON array
    of such objects will do, and so will `metadata.jsonl` or `metadata.csv` (`file_name`, `text`)
    of Hugging Face's imagefolder. Entries that cannot be used are skipped, counted in `.skipped`
    and named in the log. Pictures outside the folder are not read: neither by `..` nor, unless
    `follow_links` (`folder+links:/path`), by symbolic links. Raises UserError.
    """

    def __init__(self, path: str, max_pixels: int, follow_links: bool = False):
        self.name = f'folder{LINKS if follow_links else ""}:{path}'
        self._max_pixels = max_pixels
        self._follow_links = follow_links
        self._skips = Skips()
        try:
            self._root = Path(path).expanduser()
            found = [self._root / name for name in listing.NAMES]
            found = next((file for file in found if path and file.is_file()), None)
            if found is not None:
                inside(self._root, found.name, follow_links)
            data = found.read_bytes() if found else b''
        except (OSError, RuntimeError, BadPicture) as error:
            raise UserError(f'data.sources: {self.name} cannot be read: {error}') from error
        if found is None:
            raise UserError(
                f'data.sources: {self.name} needs a file captions.jsonl in that folder (looked for '
                f'{(self._root / listing.NAMES[0]).absolute()}), one line a picture, such as '
                f'{listing.EXAMPLE}'
            )
        self._files: list[Path] = []
        self._records: list[Record] = []
        self._scan(list(self._entries(found, data)))
        self.skipped = self._skips.counts
        if not self._records:
            raise UserError(
                f'data.sources: {self.name} has no usable picture; skipped: '
                f'{self._skips or "none"}. A line of captions.jsonl looks like {listing.EXAMPLE}'
            )
        self._skips.log(self.name, len(self))

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def picture(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadPicture."""
        return read_rgb(self._files[i], self._max_pixels)

    def _entries(self, path: Path, data: bytes) -> Iterator[tuple[str, dict]]:
        """(file, fields of its Record) of each usable entry; the others are counted."""
        for place, entry in listing.entries(path, data):
            try:
                if isinstance(entry, str):
                    raise ValueError(entry)
                file, fields = listing.fields(entry)
            except ValueError as error:
                self._skips.add('malformed line', f'{place}: {error}')
                continue
            if fields['captions']:
                yield file, fields
            else:
                self._skips.add('empty caption', place)

    def _scan(self, entries: list[tuple[str, dict]]) -> None:
        """Keeps the entries whose picture has a sound header and is not enormous."""

        def look(entry):
            try:
                path = inside(self._root, entry[0], self._follow_links)
                return path, header_size(path)
            except BadPicture as error:
                return error, None

        with ThreadPoolExecutor(_SCAN_THREADS) as pool:
            looked = list(pool.map(look, entries))
        for (file, fields), (path, size) in zip(entries, looked):
            if isinstance(path, Outside):
                self._skips.add('file outside the folder', f'{file}: {path}')
            elif size is None:
                self._skips.add('bad picture', f'{file}: {path}')
            elif size[0] * size[1] > self._max_pixels:
                self._skips.add('more than data.max_pixels', file)
            else:
                self._files.append(path)
                self._records.append(Record(*size, **fields))


class TextSource:
    """A text file, or every .txt below a folder: one document a paragraph, no pictures.

    Blank lines separate paragraphs. Files that cannot be read or decoded (UTF-8, or UTF-16 with a
    byte-order mark) are skipped and counted, and so are symbolic links that leave the folder unless
    `follow_links` (`text+links:/path`). Raises UserError.
    """

    def __init__(self, path: str, max_pixels: int, follow_links: bool = False):
        del max_pixels  # no pictures here
        self.name = f'text{LINKS if follow_links else ""}:{path}'
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
                if file is not root:
                    inside(root, str(file.relative_to(root)), follow_links)
                found = list(_paragraphs(io.StringIO(text_files.read(file))))
            except Outside:
                skips.add('file outside the folder', str(file))
                continue
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
