"""Conversations of a folder, from its conversations.jsonl (or .json, as LLaVA's files are)."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rf_jax.data import messages
from rf_jax.data.image_ops import BadImage, read_rgb
from rf_jax.data.messages import Message
from rf_jax.data.records import Skips
from rf_jax.data.sources import listing

NAMES = ('conversations.jsonl', 'conversations.json')  # the first one found is read
EXAMPLE = (
    '{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.jpg"}, '
    '{"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cat."}]}'
)
# Reasons for which a conversation is skipped.
MALFORMED = 'malformed conversation'
BAD_IMAGE = 'conversation with a bad image'
_SCAN_THREADS = 16  # reading headers waits for the disk, not for the processor

Look = Callable[[str], tuple[Any, tuple[int, int]]]


@dataclass(frozen=True)
class FileConversation:
    """A `records.Conversation` whose images are files."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]
    files: tuple[Path, ...]
    max_pixels: int

    def image(self, number: int, target=None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self.files[number], self.max_pixels, target)


def read(
    path: Path, data: bytes, look: Look, max_pixels: int, skips: Skips
) -> list[FileConversation]:
    """The conversations of a file; those that cannot be used are counted in `skips`.

    `look(name)` gives path and size of an image of the folder, or raises BadImage. Raises UserError
    where the whole file cannot be read.
    """
    found = list(_entries(path, data, skips))

    def open_all(entry):
        place, parsed = entry
        try:
            return FileConversation(*numbered(parsed, look, max_pixels), max_pixels)
        except BadImage as error:
            return f'{place}: {error}'

    with ThreadPoolExecutor(_SCAN_THREADS) as pool:
        opened = list(pool.map(open_all, found))
    for each in opened:
        if isinstance(each, str):
            skips.add(BAD_IMAGE, each)
    return [each for each in opened if not isinstance(each, str)]


def _entries(path: Path, data: bytes, skips: Skips) -> Iterable[tuple[str, tuple[Message, ...]]]:
    for place, entry in listing.entries(path, data):
        try:
            if isinstance(entry, str):
                raise ValueError(entry)
            yield place, messages.entry(entry)
        except ValueError as error:
            skips.add(MALFORMED, f'{place}: {error}')


def numbered(
    parsed: tuple[Message, ...], look: Look, max_pixels: int
) -> tuple[tuple[Message, ...], tuple[tuple[int, int], ...], tuple]:
    """(the same messages with numbers in place of names, size of each image, what `look` found).

    Raises BadImage, which names the image.
    """
    found, names = messages.renumbered(parsed)
    opened = []
    for name in names:
        try:
            file, size = look(name)
        except BadImage as error:
            raise BadImage(f'{name}: {error}') from None
        if size[0] * size[1] > max_pixels:
            raise BadImage(f'{name}: more than data.max_pixels')
        opened.append((file, size))
    return found, tuple(size for _, size in opened), tuple(file for file, _ in opened)
