"""The emoji shipped with the package: captioned images without a download."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np

from rf_jax.data.image_ops import read_rgb
from rf_jax.data.records import Record, Source, clean
from rf_jax.runtime.errors import UserError

_EMOJI = Path(__file__).parents[1] / 'assets' / 'emoji64.zip'
_SIZE = 64  # pixels
# Words that name the kind of a Unicode subgroup; without one, the whole subgroup name does.
_HEADS = (
    *('animal', 'plant', 'food', 'face', 'person', 'hand', 'place', 'transport'),
    *('flag', 'weather', 'symbol', 'object'),
)


class EmojiSource(Source):
    """The 1,851 images of 64 x 64 pixels shipped with the package; see assets/NOTICE.md."""

    def __init__(self, argument: str, max_pixels: int):
        if argument:
            raise UserError(f'data.sources: emoji takes no argument, not {argument!r}')
        self.name = 'emoji'
        self.skipped = {}
        self._max_pixels = max_pixels
        # All in memory: it is 2.5 MB, and threads need not share a file position.
        with zipfile.ZipFile(io.BytesIO(_EMOJI.read_bytes())) as archive:
            lines = archive.read('captions.jsonl').decode('utf-8').splitlines()
            entries = [json.loads(line) for line in lines]
            self._images = [archive.read(entry['file']) for entry in entries]
        self._records = [
            Record(
                *(_SIZE, _SIZE),
                captions=(clean(entry['label']),),
                tags=tuple(map(clean, entry['tags'])),
                kind=_readable(entry['subgroup']),
            )
            for entry in entries
        ]

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def image(self, i: int, target=None) -> np.ndarray:
        """uint8 [64, 64, 3]."""
        return read_rgb(self._images[i], self._max_pixels)


def _readable(subgroup: str) -> str:
    words = subgroup.split('-')
    return next((word for word in (words[0], words[-1]) if word in _HEADS), ' '.join(words))
