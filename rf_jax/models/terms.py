"""One term of the objective: a pure function of the model's outputs and the batch, and the tokens
that it counts. `training.losses` weights the terms and adds them up.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rf_jax.models.layers import Logits

Arrays = Mapping[str, jax.Array]
# (path of the head's kernel among the parameters, Logits [B, n, V], targets int32 [B, n],
# weight float32 [B, n]) -> the weighted sum of cross-entropies in nats, a float32 number.
CrossEntropy = Callable[[str, Logits, jax.Array, jax.Array], jax.Array]


class Term(NamedTuple):
    """`value(outputs, batch) -> [B, n]`, counted where `batch[weight]` [B, n] is 1."""

    weight: str
    value: Callable[[Arrays, Arrays], jax.Array]

    def summed(self, outputs: Arrays, batch: Arrays) -> jax.Array:
        """Sum of the counted values."""
        return jnp.sum(self.value(outputs, batch) * batch[self.weight])


class Prediction(NamedTuple):
    """Cross-entropy of `outputs[logits]` with `batch[targets]`; the head's kernel is at `path`.

    It has no value per token: the sum alone can do without the logits of all tokens.
    """

    weight: str
    logits: str
    targets: str
    path: str
    cross_entropy: CrossEntropy

    def summed(self, outputs: Mapping, batch: Arrays) -> jax.Array:
        """Sum of the counted tokens' nats."""
        logits, targets = outputs[self.logits], batch[self.targets]
        return self.cross_entropy(self.path, logits, targets, batch[self.weight])
