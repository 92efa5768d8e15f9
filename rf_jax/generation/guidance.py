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

from collections.abc import Mapping

import jax

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


def combine(values: Mapping, weights: Mapping) -> jax.Array:
    """The sum over branches of weight * value."""
    return sum(weight * values[branch] for branch, weight in weights.items())
