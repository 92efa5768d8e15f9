"""Classifier-free guidance with the conditions of a generated image: text, other images, and its
own representation.

Pixels, as in InstructPix2Pix (arXiv 2211.09800, equation 3), with one condition after the other:

    v(none, 0) + s_r [v(none, r) - v(none, 0)]
               + s_i [v(images, r) - v(none, r)]
               + s_t [v(all, r) - v(images, r)]

The paper gives one scale for "both conditions", that is s_r = s_i = s_t, and the terms between then
cancel. A branch is (context, representation kept), a context one of ALL, IMAGES and NONE. The
weights of the branches sum to one, so it makes no difference whether predictions or velocities are
combined.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ALL, IMAGES, NONE = CONTEXTS = ('all', 'images', 'none')  # text and images, images alone, neither
Branch = tuple[str, bool]


def pixel_weights(
    scale: float, text_scale: float = 0.0, image_scale: float = 0.0
) -> dict[Branch, float]:
    """Weights of the branches, without those of weight 0.

    `scale` is s_r, `text_scale` s_t, `image_scale` s_i; a text scale of 0 means s_r, an image scale
    of 0 means s_t: then no branch has images alone.
    """
    text = text_scale or scale
    image = image_scale or text
    weights = {
        (ALL, True): text,
        (IMAGES, True): image - text,
        (NONE, True): scale - image,
        (NONE, False): 1.0 - scale,
    }
    return {branch: weight for branch, weight in weights.items() if weight}


def token_weights(scale: float, image_scale: float = 0.0) -> dict[str, float]:
    """Weights of the logits by context, without those of weight 0:

    l(none) + s_i [l(images) - l(none)] + s [l(all) - l(images)]; an image scale of 0 means s.
    """
    image = image_scale or scale
    weights = {ALL: scale, IMAGES: image - scale, NONE: 1.0 - image}
    return {context: weight for context, weight in weights.items() if weight}


class Weights(NamedTuple):
    """Weights of the pixel branches and of the contexts of the tokens: numbers, or one for each
    image [B]. Programs are compiled for the keys and take the values as arguments.
    """

    pixels: Mapping[Branch, Any]
    tokens: Mapping[str, Any]

    def contexts(self) -> tuple[str, ...]:
        """The contexts to cache, in the order of CONTEXTS."""
        need = set(self.tokens) | {context for context, _ in self.pixels}
        return tuple(context for context in CONTEXTS if context in need)

    def rows(self) -> set[Branch]:
        """The rows that `image_sampling.generate` needs."""
        return {(ALL, True), *((context, True) for context in self.contexts()), *self.pixels}

    def within(self, other: 'Weights') -> bool:
        """Whether programs for the keys of `other` can run with these weights."""
        return all(own.keys() <= known.keys() for own, known in zip(self, other))


def stacked(each: Sequence[Weights], keys: Weights) -> Weights:
    """float32 [B]: the weights of each image at the keys of `keys`, 0 where it has none."""

    def values(field: str) -> dict:
        columns = [getattr(weights, field) for weights in each]
        return {
            key: np.array([column.get(key, 0.0) for column in columns], np.float32)
            for key in getattr(keys, field)
        }

    return Weights(values('pixels'), values('tokens'))


def combine(values: Mapping, weights: Mapping) -> jax.Array:
    """The sum over branches of weight * value; values [B, ...], weights numbers or [B]."""
    return sum(_broadcast(weights[b], values[b]) * values[b] for b in weights)


def _broadcast(weight: Any, value: jax.Array) -> Any:
    return jnp.reshape(weight, (-1, *[1] * (value.ndim - 1))) if jnp.ndim(weight) else weight
