"""What representation tokens of scenes tell: of the content under them, of the place they stand at.

Bits by counting, which some thousand tokens make too many of `shared` and `place`, the more the
more codes there are: of pure noise, 0.6 and 0.2 of 48 codes, 0.9 and 0.5 of 128 (200 pictures of 9
tokens). Compare what has as many codes and tokens.

A good target has much information of its content, and little entropy that
neither content nor place explains: that part no prompt can predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.scenes.render import segmentation
from rf_jax.scenes.world import COLOURS, SHAPES, Scene


@dataclass(frozen=True)
class Content:
    """Bits a token: information of codes and content (a look, or ground) and of codes and places;
    entropy of the codes that the content leaves.
    """

    shared: float
    place: float
    unexplained: float


def labels(scene: Scene, size: int, side: int) -> np.ndarray:
    """int64[side, side]: which look (colour, shape) fills most of the object pixels of each
    token's square, -1 ground. `size` of the picture in pixels, `side` in tokens.
    """
    seen = segmentation(scene, size).reshape(side, size // side, side, size // side)
    seen = seen.swapaxes(1, 2).reshape(side * side, -1)
    found = np.full(side * side, -1)
    for i, square in enumerate(seen):
        counts = np.bincount(square, minlength=len(scene.objects) + 1)[1:]
        if counts.sum() >= 0.1 * square.size:
            found[i] = _number(*scene.objects[int(counts.argmax())].look)
    return found.reshape(side, side)


def measure(codes: Sequence[np.ndarray], content: Sequence[np.ndarray]) -> Content:
    """codes and content int [side, side] of each picture."""
    code, look = (
        np.concatenate([c.ravel() for c in codes]),
        np.concatenate([c.ravel() for c in content]),
    )
    place = np.concatenate([np.arange(c.size) for c in codes])
    both = entropy(code, look)
    return Content(
        shared=entropy(code) + entropy(look) - both,
        place=entropy(code) + entropy(place) - entropy(code, place),
        unexplained=both - entropy(look),
    )


def entropy(*of: np.ndarray) -> float:
    """Bits of the joint distribution of integer arrays [n], by counting."""
    _, counts = np.unique(np.stack(of), axis=1, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _number(colour: str, shape: str) -> int:
    return list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)
