"""Plain text files on the user's disk."""

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from rf_jax.data.records import BadImage, Record, Skips, Source, clean
from rf_jax.data.sources.listing import LINKS, Outside, inside
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError


class TextSource(Source):
    """A text file, or every .txt file below a folder: one document per paragraph, no images.

    Blank lines separate paragraphs. Files that cannot be read or decoded (UTF-8, or UTF-16 with a
    byte-order mark) are skipped and counted, and so are symbolic links that leave the folder unless
    `follow_links` (`text+links:/path`). Raises UserError.
    """

    takes_path = True

    def __init__(self, path: str, max_pixels: int, follow_links: bool = False):
        del max_pixels  # no images here
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
                os.listdir(root)  # raises if unreadable; rglob would just find nothing
                files = sorted(root.rglob('*.txt'))
        except (OSError, RuntimeError) as error:
            raise UserError(f'data.sources: {self.name} cannot be read: {error}') from error
        skips = Skips()
        self._paragraphs: list[str] = []
        for file in files:
            try:
                if file is not root:
                    inside(root, str(file.relative_to(root)), follow_links)
                found = list(_paragraphs(io.StringIO(paths.read_text(file))))
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
                f'data.sources: {self.name} has no text; expected UTF-8 paragraphs separated by '
                'blank lines, in one file or in the .txt files of a folder; skipped: '
                f'{skips or "none"}'
            )
        skips.log(self.name, len(self))

    def __len__(self) -> int:
        return len(self._paragraphs)

    def record(self, i: int) -> Record:
        return Record(0, 0, captions=(self._paragraphs[i],))

    def image(self, i: int, target=None) -> np.ndarray:
        raise BadImage(f'{self.name} has no images')


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Cleaned paragraphs. Line by line: a regular expression over gigabytes would hold the
    interpreter lock, and so delay the heartbeat of this process, for minutes.
    """
    for blank, group in itertools.groupby(lines, key=str.isspace):
        if not blank:
            yield clean(''.join(group))
