"""What the rest of the code asks of a source."""

from typing import ClassVar, Protocol

import numpy as np

from rf_jax.data.records import Record


class Source(Protocol):
    """Captioned pictures or texts with random access, in the same order in every run and process.

    `name` is the entry of data.sources; `skipped` counts what was left out, reason -> count. Made
    as `Source(argument, max_pixels)`, which raises UserError if there is nothing to read.
    """

    name: str
    skipped: dict[str, int]

    # The argument is a local path; `follow_links` is a third argument then.
    takes_path: ClassVar[bool] = False
    # Records follow from a rule: each has a picture and captions, and a few thousand show all words
    # that occur, so that nobody reads all of them at the start.
    procedural: ClassVar[bool] = False
    # What opening it found is cached on disk, where other processes read it.
    caches_metadata: ClassVar[bool] = False

    def __len__(self) -> int: ...

    def record(self, i: int) -> Record:
        """Sizes and words of sample i, without decoding anything."""

    def picture(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadPicture."""
