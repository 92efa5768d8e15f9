"""What `Sampler.generate` gives."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """An image and what it was generated from; Jupyter displays it as a PNG.

    `image`: uint8 [h, w, 3]. `tokens`: int32 [rows, columns], the representation tokens in the
    order of the image; float32 [rows, columns, Denc] where the representation is continuous; None
    where its kind has no tokens. (`prompt`, `seed`, `number`) generate it again.
    """

    image: np.ndarray
    tokens: np.ndarray | None
    prompt: str
    seed: int
    number: int = 0

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        return (
            f'GeneratedImage({self.prompt!r}, seed={self.seed}, number={self.number}, '
            f'{height} x {width} pixels)'
        )

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.image, dtype) if copy else np.asarray(self.image, dtype)

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        Image.fromarray(self.image).save(file, 'PNG')
        return file.getvalue()
