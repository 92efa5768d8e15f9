"""Where samples come from: `build` turns the config field data.sources into a list of sources.

A source has `.name`, `.skipped` (reason -> count), `__len__`, `record(i)` (no decoding) and
`picture(i)`. Records stand in the same order in every run and on every host. One that makes its
records by a rule says `procedural = True`: each has a picture and captions, and a few thousand
show all its words, so nobody reads all of them at the start.
"""

import difflib
import functools
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from rf_jax.data.images import header_size, read_rgb
from rf_jax.data.inside import LINKS
from rf_jax.data.records import Record, clean
from rf_jax.data.source_folder import FolderSource, TextSource
from rf_jax.data.source_scenes import ScenesSource
from rf_jax.data.source_tfds import TfdsSource
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError

_EMOJI = Path(__file__).parent / 'assets' / 'emoji64.zip'
# The word of a Unicode subgroup that says what its members are; else the whole subgroup does.
_HEADS = (
    *('animal', 'plant', 'food', 'face', 'person', 'hand', 'place', 'transport'),
    *('flag', 'weather', 'symbol', 'object'),
)


class Source(Protocol):
    name: str
    skipped: dict[str, int]

    def __len__(self) -> int: ...

    def record(self, i: int) -> Record: ...

    def picture(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadPicture."""


class EmojiSource:
    """The 1,851 pictures of 64 x 64 that come with the package; see assets/NOTICE.md."""

    def __init__(self, argument: str, max_pixels: int):
        if argument:
            raise UserError(f'data.sources: emoji takes no argument, not {argument!r}')
        self.name = 'emoji'
        self.skipped = {}
        self._max_pixels = max_pixels
        # All in memory: 2.5 MB, and threads share no file position.
        with zipfile.ZipFile(io.BytesIO(_EMOJI.read_bytes())) as archive:
            lines = archive.read('captions.jsonl').decode('utf-8').splitlines()
            entries = [json.loads(line) for line in lines]
            self._pictures = [archive.read(entry['file']) for entry in entries]
        self._records = [
            Record(
                *header_size(picture),
                captions=(clean(entry['label']),),
                tags=tuple(map(clean, entry['tags'])),
                kind=_readable(entry['subgroup']),
            )
            for entry, picture in zip(entries, self._pictures)
        ]

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def picture(self, i: int) -> np.ndarray:
        """uint8 [64, 64, 3]."""
        return read_rgb(self._pictures[i], self._max_pixels)


def _readable(subgroup: str) -> str:
    words = subgroup.split('-')
    return next((word for word in (words[0], words[-1]) if word in _HEADS), ' '.join(words))


SOURCES = {
    'emoji': EmojiSource,
    'scenes': ScenesSource,
    'folder': FolderSource,
    'tfds': TfdsSource,
    'text': TextSource,
    f'folder{LINKS}': functools.partial(FolderSource, follow_links=True),
    f'text{LINKS}': functools.partial(TextSource, follow_links=True),
}
# Their argument is a path.
_ON_DISK = ('folder', 'text', f'folder{LINKS}', f'text{LINKS}')


def parts(text: str) -> list[str]:
    r"""The sources that data.sources names; `\,` is a comma that belongs to a name."""
    found = (part.replace('\\,', ',').strip() for part in re.split(r'(?<!\\),', text))
    return [part for part in found if part]


def build(text: str, max_pixels: int) -> list[Source]:
    """Sources of a comma-separated list: emoji | scenes:rung/size[/option...] | folder:/path |
    tfds:name[/config][:split] | text:/path.

    `folder+links` and `text+links` follow symbolic links out of their folder. Pictures of more than
    `max_pixels` pixels are left out. Raises UserError.
    """
    check(text)
    named = parts(text)
    sources: dict[str, Source] = {}
    for part in dict.fromkeys(named):
        kind, _, argument = part.partition(':')
        sources[part] = SOURCES[kind](argument, max_pixels)
    return [sources[part] for part in named]


def check(text: str) -> None:
    """Raises UserError, before anything is read, for an unknown kind of source and for a URL."""
    named = parts(text)
    known = (
        'emoji | scenes:rung/size[/option...] | folder:/path | tfds:name[/config][:split] | '
        'text:/path'
    )
    if not named:
        raise UserError(f'data.sources is empty; expected a comma-separated list of {known}')
    for before, part in zip(['', *named], named):
        kind, _, argument = part.partition(':')
        if kind not in SOURCES:
            near = difflib.get_close_matches(kind, SOURCES, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            if before.startswith(('folder', 'text')):
                hint += r' A comma that belongs to a name is written \, (backslash, comma).'
            raise UserError(
                f'data.sources: unknown kind {kind!r} in {part!r}.{hint} Known: {known}'
            )
        if kind in _ON_DISK and argument:
            paths.local(argument, 'data.sources')


def located(text: str) -> str:
    """The same list with absolute paths: it names the same data from whatever folder it is read.

    Raises UserError for a URL.
    """
    found = []
    for part in parts(text):
        kind, colon, argument = part.partition(':')
        if kind in _ON_DISK and argument:
            path = paths.local(argument, 'data.sources')
            part = f'{kind}{colon}{os.path.abspath(path)}'
        found.append(part.replace(',', '\\,'))
    return ','.join(found)


def surveyed(text: str) -> bool:
    """Whether one of these sources keeps on disk what it found, for other processes to read."""
    return any(part.startswith('tfds:') for part in parts(text))


def pictured(source: Source) -> Sequence[int]:
    """Numbers of the samples that have a picture, decodable or not."""
    if getattr(source, 'procedural', False):
        return range(len(source))
    return [i for i in range(len(source)) if source.record(i).height]


def summary(sources: Sequence[Source]) -> str:
    """What the plan of a run follows from: of each source how many samples it has and leaves out,
    and a digest of all it says about them (but for procedural ones, which their name tells).
    """
    told = []
    for source in sources:
        digest = hashlib.blake2b(digest_size=8)
        for i in range(0 if getattr(source, 'procedural', False) else len(source)):
            digest.update(repr(source.record(i)).encode())
        left_out = sum(source.skipped.values())
        told.append(f'{len(source)} samples ({left_out} left out, digest {digest.hexdigest()})')
    return '; '.join(told)
