"""What a run carries from step to step, and how it is born sharded."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rf_jax.data import layout
from rf_jax.data.keys import fold
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.sharding import path_name


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


def random_key(seed: int, name: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of `name` at `step`; other names, seeds and steps give unrelated keys."""
    return jax.random.fold_in(jax.random.key(fold(seed, name) % 2**32), step)


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
    z = jnp.zeros((1, 4, model.channels))
    key = random_key(seed, 'parameters')
    params = model.init(key, batch, batch['input_group'], z, jnp.zeros((1, 4)))['params']
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


def replaced(current, saved, name: str):
    """`current` with the values of the numpy tree `saved`, sharded as before.

    Raises UserError listing what is missing or of another shape.
    """

    def named(tree):
        return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    new, old = named(saved), named(current)
    wrong = [
        f'{path}: {new[path].shape if path in new else "absent"}, expected {leaf.shape}'
        for path, leaf in old.items()
        if path not in new or new[path].shape != leaf.shape
    ]
    if wrong:
        shown = '; '.join(wrong[:10])
        raise UserError(f'initialise_from={name} does not fit this config ({len(wrong)}): {shown}')
    leaves = [
        jax.device_put(new[path].astype(leaf.dtype), leaf.sharding) for path, leaf in old.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(current), leaves)
