"""The compiled programs of a run and the shapes they take, built without data or devices' work."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rf_jax.data import layout
from rf_jax.learning import optimizer, state, step
from rf_jax.models import unified
from rf_jax.runtime import mesh, sharding
from rf_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Programs:
    """`train_step(state, batch)` donates its state; `initialise()` makes one, born sharded.

    `model` works on one device or as XLA cuts it; the train step has its own, cut over the mesh.
    """

    config: Any
    mesh: Mesh
    model: unified.Unified
    abstract: state.State  # ShapeDtypeStruct with the sharding of each array
    initialise: Callable[[], state.State]
    train_step: Callable

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What a train step takes, as shapes."""
        row = layout.empty(self.config.data.capacity, self.model.channels)
        where = mesh.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct((self.config.data.rows, *a.shape), a.dtype, sharding=where)
            for name, a in row.items()
        }


def build(config, vocabulary: int, mesh_: Mesh, platform: str | None = None) -> Programs:
    """Programs of a config on a mesh. `vocabulary`: entries of the tokenizer; `platform`: cpu, gpu
    or tpu when they are compiled for another than this process runs on. Raises UserError.
    """
    parts, capacity = config.optimizer.accumulate, config.data.capacity
    if config.data.rows % parts:
        raise UserError(
            f'data.rows={config.data.rows} is no multiple of optimizer.accumulate={parts}'
        )
    mesh.check_rows(config.data.rows // parts, mesh_)
    for name in layout.SIZES:
        if capacity[name] % mesh_.shape['context']:
            raise UserError(
                f'data.capacity.{name}={capacity[name]} is no multiple of mesh.context='
                f'{mesh_.shape["context"]}: every device of a row holds an equal part of it'
            )
    model = unified.build(config, vocabulary, platform=platform)

    def optimizer_of(params):
        return optimizer.build(config.optimizer, params)

    def new_state():
        width, codes = config.model.encoder.width, config.model.representation.codes
        return state.initialise(model, optimizer_of, codes, width, config.seed)

    abstract = jax.eval_shape(new_state)
    where = sharding.shardings(abstract, mesh_, config.sharding)
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, where
    )
    cut = unified.build(config, vocabulary, mesh_, platform)
    train_step = jax.jit(
        step.build(config, cut, optimizer_of), donate_argnums=0, out_shardings=(where, None)
    )
    initialise = jax.jit(new_state, out_shardings=where)
    return Programs(config, mesh_, model, abstract, initialise, train_step)


def nbytes_per_device(tree) -> float:
    """Bytes of a tree of arrays or shapes with shardings on the fullest device."""
    return float(
        sum(
            np.prod(a.sharding.shard_shape(a.shape)) * np.dtype(a.dtype).itemsize
            for a in jax.tree.leaves(tree)
        )
    )
