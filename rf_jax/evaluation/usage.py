"""How many prototypes are alive: the share of the codebook that an epoch of pictures is given."""

import jax
import numpy as np

from rf_jax.learning import step
from rf_jax.learning.loop import Run
from rf_jax.learning.state import State
from rf_jax.models import quantizer


def codes_over_an_epoch(run: Run, state: State) -> float:
    """Share of the K prototypes, in [0, 1], that the batches of one epoch use; nothing learns."""
    assign = quantizer.build(run.config)
    hit = np.zeros(run.config.model.representation.codes, bool)

    @jax.jit
    def codes_of(state, batch):
        return step.quantize(run.config, assign, run.model, state, batch)[0]

    for number in range(run.batches.plan.steps_per_epoch):
        batch = run.batches.batch(number)
        codes = np.asarray(codes_of(state, run.put(batch)))
        hit[codes[batch['pixel_weight'][:, ::4] > 0]] = True
    return float(hit.mean())
