"""What a run carries from step to step, and how it is born sharded."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from rf_jax.data import layout
from rf_jax.data.keys import fold
from rf_jax.learning import optimizer as optimizers
from rf_jax.runtime import paths
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
    z, t = jnp.zeros((1, 4, model.drawn)), jnp.zeros((1, 4))
    tokens = model.representation_of.example()
    key = random_key(seed, 'parameters')
    params = model.init(key, batch, tokens, z, t, z)['params']
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


def other_runs(config) -> list[Path]:
    """Folders of `initialise_from`. Raises UserError for a URL."""
    parts = (part.strip() for part in config.initialise_from.split(','))
    return [paths.local(part, 'initialise_from') for part in parts if part]


def started_from(current: State, saved: Sequence, config) -> State:
    """`current` with the weights, average and codebook of other runs' states, numpy trees.

    What `optimizer.freeze` holds starts as its average, which is what was scored and what targets
    are made of: weights of their own would draw the average after them, which shall not move.
    Raises UserError listing what none of them has.
    """
    found = {}
    for name in ('params', 'ema', 'codebook'):
        # A name for the codebook too, that `initialise_new` can match.
        whole = {name: getattr(current, name)} if name == 'codebook' else getattr(current, name)
        others = [{name: tree[name]} if name == 'codebook' else tree[name] for tree in saved]
        found[name] = replaced(whole, others, config, name)

    def own_or_average(path, own, averaged):
        still = optimizers.frozen(path_name(path), config.optimizer.freeze)
        # A copy, as the state is donated, and where `own` lies: the average may be offloaded.
        return jnp.copy(jax.device_put(averaged, own.sharding)) if still else own

    found['params'] = jax.tree_util.tree_map_with_path(
        own_or_average, found['params'], found['ema']
    )
    return current.replace(**found | {'codebook': found['codebook']['codebook']})


def replaced(current, saved: Sequence, config, name: str):
    """`current` with the values of numpy trees, sharded as before.

    Each leaf comes from the first of `saved` that has its path, as `initialise_as` rewrites it;
    those whose path matches a regex of `initialise_new` stay. Raises UserError listing those that
    none has, or has in another shape.
    """

    def named(tree):
        return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

    others, leaves, wrong = [named(tree) for tree in saved], [], []
    for path, leaf in named(current).items():
        if any(re.search(pattern, path) for pattern in config.initialise_new):
            leaves.append(leaf)
            continue
        sought = path
        for pattern, replacement in config.initialise_as:
            sought = re.sub(pattern, replacement, sought)
        value = next((other[sought] for other in others if sought in other), None)
        if value is None or value.shape != leaf.shape:
            has = 'absent' if value is None else f'{value.shape}'
            wrong.append(f'{sought}: {has}, expected {leaf.shape}')
        else:
            leaves.append(jax.device_put(value.astype(leaf.dtype), leaf.sharding))
    if wrong:
        raise UserError(
            f'initialise_from={config.initialise_from}: {name} does not fit this config '
            f'({len(wrong)}): {"; ".join(wrong[:10])}. initialise_new names what shall be born new'
        )
    return jax.tree.unflatten(jax.tree.structure(current), leaves)
