"""What representation tokens of scenes tell: of the content under them, of the place they stand at.

Bits by counting. A good target has much information of its content, and little entropy that
neither content nor place explains: that part no prompt can predict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.data.scene_pictures import segmentation
from rf_jax.data.scenes import COLOURS, SHAPES, Scene


@dataclass(frozen=True)
class Content:
    """Bits a token: entropy of the codes and of the content (a look, or ground); information of
    each other; information of codes and places; entropy of codes that the content leaves. `used`:
    number of codes that occur; `mixed`: share of looks whose commonest code is another look's too.
    """

    codes: float
    content: float
    shared: float
    place: float
    unexplained: float
    used: int
    mixed: float


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
    of_codes, of_content, both = entropy(code), entropy(look), entropy(code, look)
    favourite = [np.bincount(code[look == each]).argmax() for each in np.unique(look)]
    return Content(
        codes=of_codes,
        content=of_content,
        shared=of_codes + of_content - both,
        place=of_codes + entropy(place) - entropy(code, place),
        unexplained=both - of_content,
        used=len(np.unique(code)),
        mixed=1 - len(set(favourite)) / len(favourite),
    )


def entropy(*of: np.ndarray) -> float:
    """Bits of the joint distribution of integer arrays [n], by counting."""
    _, counts = np.unique(np.stack(of), axis=1, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _number(colour: str, shape: str) -> int:
    return list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)
