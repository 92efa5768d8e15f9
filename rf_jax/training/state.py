"""The train state, and its sharded initialisation."""

from dataclasses import fields
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from rf_jax.data import layout
from rf_jax.models.microbatches import Part
from rf_jax.runtime.rng import random_key
from rf_jax.training import lora


@flax.struct.dataclass
class State:
    """Everything that a checkpoint holds. `step` counts batches consumed, skipped updates included.

    `ema` is a tree like `params`: the quantizer uses its encoder, inference all of it. `codebook`
    float32 [K, Denc]. `skipped` counts skipped non-finite updates, `streak` those in a row.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    codebook: jax.Array
    skipped: jax.Array
    streak: jax.Array

    def complete(self, params: Any) -> Any:
        """The parameters of the whole model, of `params` or `ema`."""
        return params

    def whole(self) -> 'State':
        """The state with parameters and EMA of the whole model."""
        return self.replace(params=self.complete(self.params), ema=self.complete(self.ema))

    def saved(self) -> 'State':
        """What a checkpoint holds of it."""
        return self


@flax.struct.dataclass
class AdapterState(State):
    """The state of a run with adapters (lora.py): `params` and `ema` are what is trained, `base` is
    frozen and not saved.
    """

    base: Any
    scale: float = flax.struct.field(pytree_node=False)

    def complete(self, params: Any) -> Any:
        return lora.merged(self.base, params, self.scale)

    def saved(self) -> State:
        return State(**{field.name: getattr(self, field.name) for field in fields(State)})

    def with_saved(self, saved: State) -> 'AdapterState':
        """The state with all but the base from `saved`."""
        return self.replace(**{f.name: getattr(saved, f.name) for f in fields(State)})


def example_row(channels: int) -> dict[str, jax.Array]:
    """The smallest batch that uses every parameter: one row, with one image to read and one to
    generate.
    """
    capacity = {'text': 1, 'vision': 1, 'representation': 2, 'pixels': 4,
                'vision_images': 1, 'pixel_images': 1}  # fmt: skip
    return {name: jnp.asarray(a)[None] for name, a in layout.empty(capacity, channels).items()}


def initialise(
    model, optimizer_of, codes: int, width: int, seed: int, adapters: ConfigDict | None = None
) -> State:
    """A new state; jit it with out_shardings so that parameters are initialised sharded.

    `optimizer_of(params)` gives the optimizer, which depends on the paths of the parameters.
    `adapters`: the config of a run with adapters.
    """
    batch = example_row(model.channels)
    z, t = jnp.zeros((1, 4, model.flow_channels)), jnp.zeros((1, 4))
    key = random_key(seed, 'parameters')
    batch |= model.space.noise(key, Part(), z.shape)
    tokens = model.kind.begin(model.config, 2)[None]
    params = model.init(key, batch, tokens, z, t)['params']
    params, base = (params, None) if adapters is None else lora.split(adapters, params)
    optimizer: optax.GradientTransformation = optimizer_of(params)
    codebook = jax.random.normal(random_key(seed, 'first codebook'), (codes, width))
    new = State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        codebook=codebook / jnp.linalg.norm(codebook, axis=-1, keepdims=True),
        skipped=jnp.zeros((), jnp.int32),
        streak=jnp.zeros((), jnp.int32),
    )
    if adapters is None:
        return new
    held = {field.name: getattr(new, field.name) for field in fields(State)}
    return AdapterState(**held, base=base, scale=lora.scale_of(adapters))
