"""How much of the codebook is used: the share of prototypes that an epoch of images selects."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rf_jax.models import quantizer, unified
from rf_jax.models.representation import features
from rf_jax.training.state import State
from rf_jax.training.train_loop import Run


def codes_over_an_epoch(run: Run, state: State) -> float:
    """Share of the K prototypes, in [0, 1], that the batches of one epoch use, without training.

    If an epoch is longer than a window of the packing plan, only the first window counts.
    """
    assign = quantizer.build(run.config)
    model = unified.build(run.config, run.tokenizer.size, run.mesh)  # sharded as the state is
    count = run.config.model.representation.codebook_size
    is_used = np.zeros(count, bool)

    def used(state, batch):
        # Not forcing.quantize, which initialises the codebook at a step of data_init_steps.
        z, real = features.group_features(run.config, model, state.ema, batch)
        codes = assign(z, state.codebook, real)
        return jnp.zeros(count + 1, bool).at[jnp.where(real, codes, count)].set(True)[:count]

    # Replicated, as each host has only some of the rows.
    used = jax.jit(used, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
    plan = run.batches.plan
    for number in range(min(plan.steps_per_epoch, plan.steps_per_window)):
        is_used |= np.asarray(used(state, run.put(run.batches.batch(number))))
    return float(is_used.mean())
