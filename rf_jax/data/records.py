"""What a data source says about one sample, and how it accounts for those it leaves out."""

from collections import Counter
from dataclasses import dataclass

from absl import logging

_NAMED = 3  # examples that the log names for each reason


class BadPicture(Exception):
    """A picture that cannot be used: missing, broken, not a picture, or too large."""


@dataclass(frozen=True)
class Record:
    """One sample without its pixels."""

    height: int  # pixels as shown; 0, 0: no picture
    width: int
    captions: tuple[str, ...] = ()  # captions[0] is what describing should answer
    tags: tuple[str, ...] = ()
    kind: str = ''
    questions: tuple[tuple[str, str], ...] = ()  # (question, answer)


class Skips:
    """Counts what a source leaves out, by reason, and remembers the first few names."""

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
    """Strips, and collapses every run of white space to one space; half a surrogate pair, which
    is no text, becomes '?'.
    """
    return ' '.join(text.encode('utf-8', 'replace').decode('utf-8').split())
