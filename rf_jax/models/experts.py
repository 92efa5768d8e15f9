"""Mixture-of-Transformers routing: a token's stream chooses its expert group, by static slices.

The three groups are understanding (text and vision), representation and pixels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

GROUPS = ('understanding', 'representation', 'pixels')


def by_group(make: Callable[[str], nn.Module], lengths, *x: jax.Array):
    """Applies `make(group)` to each group's slice of [B, L, ...] arrays and joins the results.

    `lengths` are the token counts of the three groups in the row, in order; they sum to L. A group
    without tokens is not applied: its parameters exist all the same, made when the model is born
    from a row that holds all groups.
    """
    outputs, start = [], 0
    for group, length in zip(GROUPS, lengths):
        if length:
            outputs.append(make(group)(*(a[:, start : start + length] for a in x)))
        start += length
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *outputs)
