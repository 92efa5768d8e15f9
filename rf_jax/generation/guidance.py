"""Classifier-free guidance with two conditions: text and representation.

Pixels, as in InstructPix2Pix (arXiv 2211.09800, equation 3):
v(0,0) + s_r [v(0,r) - v(0,0)] + s_c [v(c,r) - v(0,r)]. The paper gives one scale for "both
conditions", that is s_r = s_c, and v(0,r) then cancels. A branch is (text kept, representation
kept). The weights of the branches sum to one, so it makes no difference whether predictions or
velocities are combined.
"""

from collections.abc import Mapping

import jax

Branch = tuple[bool, bool]


def pixel_weights(scale: float, text_scale: float = 0.0) -> dict[Branch, float]:
    """Weights of the branches, without those of weight 0.

    `scale` is s_r; `text_scale` is s_c, and 0 means the same as `scale`.
    """
    text = text_scale or scale
    weights = {(True, True): text, (False, True): scale - text, (False, False): 1.0 - scale}
    return {branch: weight for branch, weight in weights.items() if weight}


def token_weights(scale: float) -> dict[bool, float]:
    """Weights of the logits with (True) and without text: l(0) + scale [l(c) - l(0)]."""
    weights = {True: scale, False: 1.0 - scale}
    return {kept: weight for kept, weight in weights.items() if weight}


def combine(values: Mapping, weights: Mapping) -> jax.Array:
    """The sum over branches of weight * value."""
    return sum(weight * values[branch] for branch, weight in weights.items())
