"""Classifier-free guidance with two conditions: text and representation.

Pixels, after InstructPix2Pix: v(0,0) + s_r [v(0,r) - v(0,0)] + s_c [v(c,r) - v(0,r)]. The paper
gives one number for "both conditions", which is s_r = s_c, and then v(0,r) drops out. A branch is
(text kept, representation kept); the weights of the branches sum to one, so combining predicted
pictures or velocities is the same.
"""

from collections.abc import Mapping

import jax

Branch = tuple[bool, bool]


def pixel_weights(scale: float, text_scale: float = 0.0) -> dict[Branch, float]:
    """Weights of the branches that matter; `text_scale` s_c, 0 for the same as `scale` s_r."""
    text = text_scale or scale
    weights = {(True, True): text, (False, True): scale - text, (False, False): 1.0 - scale}
    return {branch: weight for branch, weight in weights.items() if weight}


def token_weights(scale: float) -> dict[bool, float]:
    """Weights of the logits with and without text: l(0) + scale [l(c) - l(0)]."""
    weights = {True: scale, False: 1.0 - scale}
    return {kept: weight for kept, weight in weights.items() if weight}


def combine(values: Mapping, weights: Mapping) -> jax.Array:
    """Sum over branches of weight x value."""
    return sum(weight * values[branch] for branch, weight in weights.items())
