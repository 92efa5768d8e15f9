"""The interface of a data source: what it says about one example, how it counts those it skips."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from absl import logging

from rf_jax.data.messages import Message
from rf_jax.data.resizing import Target

if TYPE_CHECKING:
    from rf_jax.data.shards.reader import Shards

_NAMED = 3  # entries that the log names for each reason


class BadImage(Exception):
    """An image that cannot be used: missing, broken, not an image, or too large."""


class EmptyCaption(ValueError):
    """A captioned image without text."""


class Conversation(Protocol):
    """Messages whose image parts hold the number of an image in `sizes`."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width of each image, pixels as shown

    def image(self, number: int, target: Target | None = None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage. `target` as `Source.image`."""


@dataclass(frozen=True)
class Record:
    """One example without its pixels."""

    height: int  # pixels as shown; 0, 0: no image
    width: int
    captions: tuple[str, ...] = ()  # captions[0] is the reference caption
    tags: tuple[str, ...] = ()
    kind: str = ''
    questions: tuple[tuple[str, str], ...] = ()  # (question, answer)


class Skips:
    """Counts the entries that a source skips, by reason, and keeps the names of the first few."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add_unusable(self, name: str, error: BadImage | ValueError) -> None:
        """Adds a sample for what `shards.sample.from_members` raised about it."""
        if isinstance(error, EmptyCaption):
            self.add('empty caption', name)
        else:
            reason = 'bad image' if isinstance(error, BadImage) else 'malformed'
            self.add(reason, f'{name}: {error}')

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _NAMED:
            examples.append(example)

    def add_all(self, counts: Mapping[str, int], examples: Mapping[str, Sequence[str]]) -> None:
        """Adds the counts and examples of another."""
        self.counts.update(counts)
        for reason, names in examples.items():
            own = self.examples.setdefault(reason, [])
            own += names[: _NAMED - len(own)]

    def __str__(self) -> str:
        return '; '.join(
            f'{count} x {reason} ({", ".join(self.examples[reason])}'
            + (', ...)' if count > _NAMED else ')')
            for reason, count in self.counts.most_common()
        )

    def log(self, name: str, kept: int) -> None:
        if self.counts:
            logging.warning('%s: kept %d, skipped %d: %s', name, kept, self.counts.total(), self)


def clean(text: str) -> str:
    """Strips, and collapses every run of white space to one space; a lone surrogate, which is not
    valid text, becomes '?'.
    """
    return ' '.join(text.encode('utf-8', 'replace').decode('utf-8').split())


class IndexedSource(Protocol):
    """Samples in shards with an index, which need no memory per sample.

    `name`, `skipped`: as of a Source. `tokenizer`: the path of the tokenizer that comes with it, or
    ''. Constructed as `IndexedSource(argument, max_pixels)`; raises UserError.
    """

    name: str
    skipped: dict[str, int]
    tokenizer: str
    takes_path: ClassVar[bool] = True
    takes_bucket: ClassVar[bool] = True
    caches_metadata: ClassVar[bool] = False

    def texts(self, count: int) -> Iterator[str]:
        """Texts of the first `count` samples, to train a tokenizer on."""

    def open(self, tokenizer, megabytes: int) -> Mapping[str, 'Shards']:
        """Its samples by kind (`shards.set_file.KINDS`), their text counted by this tokenizer;
        `megabytes`: of what is read from a bucket to hold. Raises UserError.
        """

    def summary(self) -> str:
        """How many samples it has and left out, and a digest of what batches depend on."""


class Source(Protocol):
    """Captioned images or texts with random access, in the same order in every run and process.

    `name` is the entry of data.sources; `skipped` maps each reason to the number of entries skipped
    for it. Constructed as `Source(argument, max_pixels)`; raises UserError if nothing is readable.
    """

    name: str
    skipped: dict[str, int]
    conversations: Sequence[Conversation] = ()  # beside its examples
    maps: Mapping[str, Sequence[int]] = MappingProxyType({})  # the examples that have such a map

    # The argument is a local path; the constructor then takes `follow_links` as well.
    takes_path: ClassVar[bool] = False
    takes_bucket: ClassVar[bool] = False  # or a path in a bucket
    # Records are generated: each has an image and captions, and a few thousand of them contain all
    # words that occur, so the start need not read all of them.
    procedural: ClassVar[bool] = False
    # Opening it writes metadata to a cache on disk, which other processes read.
    caches_metadata: ClassVar[bool] = False

    def __len__(self) -> int: ...

    def record(self, i: int) -> Record:
        """Size and text of example i, without decoding anything."""

    def image(self, i: int, target: Target | None = None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage.

        `target`: what it will be resized to, as `image_ops.read_rgb` can use.
        """

    def map(self, i: int, name: str) -> np.ndarray:
        """uint8 [h, w, 3]: a map of image i, if `maps[name]` has i; raises BadImage."""


def is_indexed(source: Source | IndexedSource | type) -> bool:
    """Whether its samples are in shards with an index; of a source or its class."""
    return hasattr(source, 'open')
