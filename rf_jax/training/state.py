"""What a run carries from step to step, and how it is born sharded."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rf_jax.data import layout
from rf_jax.models.microbatches import Part
from rf_jax.runtime.prng import random_key


@flax.struct.dataclass
class State:
    """All of it is saved. `step` counts batches consumed, also those of skipped updates.

    `ema` is one tree like `params`: its encoder is what the quantizer reads, its whole is what
    inference uses. `codebook` float32 [K, Denc]. `skipped` counts non-finite updates left out,
    `streak` those in a row.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    codebook: jax.Array
    skipped: jax.Array
    streak: jax.Array


def example_row(channels: int) -> dict[str, jax.Array]:
    """The smallest batch that touches every parameter: one row, one picture each way."""
    capacity = {'text': 1, 'vision': 1, 'representation': 2, 'pixels': 4,
                'vision_pictures': 1, 'pixel_pictures': 1}  # fmt: skip
    return {name: jnp.asarray(a)[None] for name, a in layout.empty(capacity, channels).items()}


def initialise(model, optimizer_of, codes: int, width: int, seed: int) -> State:
    """A fresh state; jit it with out_shardings so that parameters are born sharded.

    `optimizer_of(params)` gives the transformation, which depends on the parameters' paths.
    """
    batch = example_row(model.channels)
    z, t = jnp.zeros((1, 4, model.drawn)), jnp.zeros((1, 4))
    key = random_key(seed, 'parameters')
    batch |= model.space.noise(key, Part(), z.shape)
    tokens = model.kind.begin(model.config, 2)[None]
    params = model.init(key, batch, tokens, z, t)['params']
    optimizer: optax.GradientTransformation = optimizer_of(params)
    codebook = jax.random.normal(random_key(seed, 'first codebook'), (codes, width))
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        codebook=codebook / jnp.linalg.norm(codebook, axis=-1, keepdims=True),
        skipped=jnp.zeros((), jnp.int32),
        streak=jnp.zeros((), jnp.int32),
    )
