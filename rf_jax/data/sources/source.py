"""The interface of a data source."""

from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from rf_jax.data.records import Conversation, Record


class Source(Protocol):
    """Captioned images or texts with random access, in the same order in every run and process.

    `name` is the entry of data.sources; `skipped` maps each reason to the number of entries skipped
    for it. Constructed as `Source(argument, max_pixels)`; raises UserError if nothing is readable.
    """

    name: str
    skipped: dict[str, int]
    conversations: Sequence[Conversation] = ()  # beside its examples

    # The argument is a local path; the constructor then takes `follow_links` as well.
    takes_path: ClassVar[bool] = False
    # Records are generated: each has an image and captions, and a few thousand of them contain all
    # words that occur, so the start need not read all of them.
    procedural: ClassVar[bool] = False
    # Opening it writes metadata to a cache on disk, which other processes read.
    caches_metadata: ClassVar[bool] = False

    def __len__(self) -> int: ...

    def record(self, i: int) -> Record:
        """Size and text of example i, without decoding anything."""

    def image(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
