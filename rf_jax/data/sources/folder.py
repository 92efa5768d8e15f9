"""A folder of captioned images on the user's disk."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from rf_jax.data.image_ops import BadImage, header_size, read_rgb
from rf_jax.data.records import Record, Skips, Source
from rf_jax.data.sources import conversation_file, listing
from rf_jax.data.sources.conversation_file import FileConversation
from rf_jax.data.sources.listing import LINKS, Outside, inside
from rf_jax.runtime.errors import UserError

_ASPECT = 0.05  # largest difference of the aspect ratios of an image and its map
_SCAN_THREADS = 16  # reading headers waits for the disk, not for the processor


class FolderSource(Source):
    """Images and a file `captions.jsonl`, one JSON object per line:

        {"file": ..., "caption": one or a list, "tags": [...], "kind": ...,
         "questions": [{"question": ..., "answer": ...}],
         "depth": ..., "segmentation": ..., "regions": ...}

    `file` is a path in the folder, and so are those of maps of the image, of the same aspect ratio;
    all but file and caption may be left out, or null. A JSON array
    of such objects works too, and so does `metadata.jsonl` or `metadata.csv` (`file_name`, `text`)
    of Hugging Face's imagefolder. `conversations.jsonl` beside it, or alone, holds conversations
    (`data.messages`). Entries that cannot be used are skipped, counted in `.skipped`
    and named in the log. Images outside the folder are not read: neither by `..` nor, unless
    `follow_links` (`folder+links:/path`), by symbolic links. Raises UserError.
    """

    takes_path = True

    def __init__(self, path: str, max_pixels: int, follow_links: bool = False):
        self.name = f'folder{LINKS if follow_links else ""}:{path}'
        self._max_pixels = max_pixels
        self._follow_links = follow_links
        self._skips = Skips()
        try:
            self._root = Path(path).expanduser()
            captions = self._first(listing.NAMES)
            conversations = self._first(conversation_file.NAMES)
        except (OSError, RuntimeError, BadImage) as error:
            raise UserError(f'data.sources: {self.name} cannot be read: {error}') from error
        if not path or not (captions or conversations):
            raise UserError(
                f'data.sources: {self.name} needs a file captions.jsonl in that folder (looked for '
                f'{(self._root / listing.NAMES[0]).absolute()}), one line per image, such as '
                f'{listing.EXAMPLE}; or a file conversations.jsonl, one line per conversation'
            )
        self._files: list[Path] = []
        self._records: list[Record] = []
        self._maps: dict[str, dict[int, Path]] = {}  # by name and example
        self.conversations: list[FileConversation] = []
        if captions:
            self._scan(list(self._entries(*captions)))
        if conversations:
            self.conversations = conversation_file.read(
                *conversations, self._look, max_pixels, self._skips
            )
        self.maps = {name: list(files) for name, files in self._maps.items()}
        self.skipped = self._skips.counts
        if not self._records and not self.conversations:
            name, example = (
                ('captions.jsonl', listing.EXAMPLE)
                if captions
                else ('conversations.jsonl', conversation_file.EXAMPLE)
            )
            raise UserError(
                f'data.sources: {self.name} has no usable image; skipped: '
                f'{self._skips or "none"}. A line of {name} looks like {example}'
            )
        self._skips.log(self.name, len(self) + len(self.conversations))

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def image(self, i: int, target=None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self._files[i], self._max_pixels, target)

    def map(self, i: int, name: str) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self._maps[name][i], self._max_pixels)

    def _first(self, names: Sequence[str]) -> tuple[Path, bytes] | None:
        """The first of these files that the folder has, and its bytes. Raises OSError, BadImage."""
        found = next((f for f in (self._root / name for name in names) if f.is_file()), None)
        if found is None:
            return None
        inside(self._root, found.name, self._follow_links)
        return found, found.read_bytes()

    def _look(self, name: str) -> tuple[Path, tuple[int, int]]:
        """Path and size of an image of the folder; raises BadImage."""
        path = inside(self._root, name, self._follow_links)
        return path, header_size(path)

    def _entries(self, path: Path, data: bytes) -> Iterator[tuple[str, dict, dict[str, str]]]:
        """(file, fields of its Record, files of its maps) of each usable entry; the others are
        counted.
        """
        ignored: dict[str, list[str]] = {}
        for place, entry in listing.entries(path, data):
            try:
                if isinstance(entry, str):
                    raise ValueError(entry)
                file, fields = listing.fields(entry)
                maps = listing.named_maps(entry)
            except ValueError as error:
                self._skips.add('malformed line', f'{place}: {error}')
                continue
            for name in listing.ignored(entry, fields):
                ignored.setdefault(name, []).append(place)
            if fields['captions']:
                yield file, fields, maps
            else:
                self._skips.add('empty caption', place)
        for name, places in ignored.items():
            logging.warning(
                '%s: "%s" has another form and is ignored in %s%s (docs/data.md)',
                *(self.name, name, places[0], f' and {len(places) - 1} more' * (len(places) > 1)),
            )

    def _scan(self, entries: list[tuple[str, dict, dict[str, str]]]) -> None:
        """Keeps the entries whose image has a valid header and is not too large."""

        def look(file):
            try:
                return self._look(file)
            except BadImage as error:
                return error, None

        with ThreadPoolExecutor(_SCAN_THREADS) as pool:
            looked = list(pool.map(look, [file for file, *_ in entries]))
            files = dict.fromkeys(file for *_, maps in entries for file in maps.values())
            files = dict(zip(files, pool.map(look, files)))
        for (file, fields, maps), (path, size) in zip(entries, looked):
            if isinstance(path, Outside):
                self._skips.add('file outside the folder', f'{file}: {path}')
            elif size is None:
                self._skips.add('bad image', f'{file}: {path}')
            elif size[0] * size[1] > self._max_pixels:
                self._skips.add('more than data.max_pixels', file)
            else:
                for name, other in maps.items():
                    self._keep_map(name, other, size, *files[other])
                self._files.append(path)
                self._records.append(Record(*size, **fields))

    def _keep_map(self, name: str, file: str, size, path, own_size) -> None:
        """Keeps a map of the next example, an image of `size`; a bad one is counted."""
        if own_size is None:
            self._skips.add(f'bad {name} map', f'{file}: {path}')
        elif own_size[0] * own_size[1] > self._max_pixels:
            self._skips.add('more than data.max_pixels', file)
        elif abs(own_size[0] * size[1] - own_size[1] * size[0]) > _ASPECT * own_size[0] * size[1]:
            sizes = ' and '.join(f'{width}x{height}' for height, width in (size, own_size))
            self._skips.add(f'{name} map of another shape', f'{file}: {sizes}')
        else:
            self._maps.setdefault(name, {})[len(self._records)] = path
