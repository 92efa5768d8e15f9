"""What a data source says about one example, and how it counts those it skips."""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from absl import logging

from rf_jax.data.messages import Message

_NAMED = 3  # entries that the log names for each reason


class BadImage(Exception):
    """An image that cannot be used: missing, broken, not an image, or too large."""


class Conversation(Protocol):
    """Messages whose image parts hold the number of an image in `sizes`."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]  # height and width of each image, pixels as shown

    def image(self, number: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""


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
        self._examples: dict[str, list[str]] = {}

    def add(self, reason: str, example: str) -> None:
        self.counts[reason] += 1
        examples = self._examples.setdefault(reason, [])
        if len(examples) < _NAMED:
            examples.append(example)

    def __str__(self) -> str:
        return '; '.join(
            f'{count} x {reason} ({", ".join(self._examples[reason])}'
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
