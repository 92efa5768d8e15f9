"""Images that were generated, from the patches of the model to what a user gets."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from rf_jax.data import image_ops


@dataclass(frozen=True, eq=False)
class GeneratedImage:
    """An image and what it was generated from; Jupyter displays it as a PNG.

    `image`: uint8 [h, w, 3]. `tokens`: int32 [rows, columns], the representation tokens in the
    order of the image; float32 [rows, columns, Denc] where the representation is continuous; None
    where its kind has no tokens. `Sampler.generate` with the same `prompt`, `seed`, `number`, size
    and options gives it again; one of a chat comes with the same messages.
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


@dataclass(frozen=True, eq=False)
class PartialImage:
    """An image that is being generated. `tokens` as in GeneratedImage, the begin token where none
    has been sampled yet. `image`: uint8 [h, w, 3], `index` among the requested partial images;
    None while tokens are sampled.
    """

    tokens: np.ndarray | None
    image: np.ndarray | None = None
    index: int = 0


def from_patches(patches: np.ndarray, size: tuple[int, int], patch: int, pool: int) -> np.ndarray:
    """Generated patches float32 [P, C] in [-1, 1], or more, to uint8 [h, w, 3] of `size`."""
    height, width = size
    count = (height // patch) * (width // patch)
    image = image_ops.unpatchify(patches[:count], height, width, patch, pool)
    return np.clip((image + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def token_map(
    tokens: np.ndarray, size: tuple[int, int], patch: int, pool: int
) -> np.ndarray | None:
    """Tokens [N, ...], or more, of an image of `size` as [rows, columns, ...]; None for pool 0."""
    if not pool:
        return None
    rows, columns = (side // (patch * pool) for side in size)
    # A copy, as a part would keep the tokens of the whole batch.
    return tokens[: rows * columns].reshape(rows, columns, *tokens.shape[1:]).copy()
