"""The jitted programs of a run and their input shapes, built without data or computation."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rf_jax.data import layout
from rf_jax.models import unified
from rf_jax.runtime import checkpoint_files, mesh, sharding
from rf_jax.runtime.errors import UserError, choose
from rf_jax.training import optimizer, state, step


@dataclass(kw_only=True)
class Programs:
    """`train_step(state, batch)` donates its state; `initialise()` makes a sharded state;
    `initialise_only(paths)` makes only the arrays at those paths.

    `model` runs on one device or as XLA shards it; the train step has its own model, sharded over
    the mesh.
    """

    config: Any
    mesh: Mesh
    model: unified.Unified
    abstract: state.State  # ShapeDtypeStruct with the sharding of each array
    initialise: Callable[[], state.State]
    initialise_only: Callable[[Set[str]], dict[str, jax.Array]]
    train_step: Callable
    terms: Sequence[str]  # of its loss

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch of a train step, as shapes with shardings."""
        row = layout.empty(self.config.data.capacity, self.model.channels)
        where = mesh.batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(
                (self.config.data.batch_size, *a.shape), a.dtype, sharding=where
            )
            for name, a in row.items()
        }


def from_host(train_step: Callable, names: Sequence[str]) -> Callable:
    """The step for a state whose parts of these names are in host memory."""

    def step_from_host(state, batch):
        near = {name: jax.device_put(getattr(state, name), jax.memory.Space.Device)
                for name in names}  # fmt: skip
        return train_step(state.replace(**near), batch)

    return step_from_host if names else train_step


def with_stop(train_step: Callable) -> Callable:
    """The step, with `stop` in the metrics: true if it is true on any device (see Run.put)."""

    def step_and_stop(state, batch):
        batch = dict(batch)
        stop = batch.pop('stop', None)
        state, values = train_step(state, batch)
        return state, values if stop is None else values | {'stop': stop.any()}

    return step_and_stop


def check(config, mesh_: Mesh) -> None:
    """Raises UserError for rows that the mesh cannot shard, or state that cannot be offloaded."""
    parts, capacity = config.optimizer.grad_accum_steps, config.data.capacity
    for name in config.offload:
        choose('offload', name, dict.fromkeys(('ema', 'opt_state')))
    if config.data.batch_size % parts:
        raise UserError(
            f'data.batch_size={config.data.batch_size} is not a multiple of '
            f'optimizer.grad_accum_steps={parts}'
        )
    mesh.check_batch_size(config.data.batch_size // parts, mesh_)
    for name in layout.SIZES:
        if capacity[name] % mesh_.shape['context']:
            raise UserError(
                f'data.capacity.{name}={capacity[name]} is not a multiple of mesh.context='
                f'{mesh_.shape["context"]}: the devices that share a row hold equal parts of it'
            )


def build(
    config,
    vocabulary: int,
    mesh_: Mesh,
    platform: str | None = None,
    objective_of: Callable | None = None,
) -> Programs:
    """The programs of a config on a mesh. `vocabulary`: size of the tokenizer; `platform`: cpu, gpu
    or tpu, to compile for another platform than that of this process; `objective_of(config, model)`
    gives the `step.Objective`, by default that of pre-training. Raises UserError.
    """
    check(config, mesh_)
    model = unified.build(config, vocabulary, platform=platform)

    def optimizer_of(params):
        return optimizer.build(config.optimizer, params, config.steps)

    def new_state():
        width, codes = config.model.encoder.width, config.model.representation.codebook_size
        return state.initialise(model, optimizer_of, codes, width, config.seed)

    abstract = jax.eval_shape(new_state)
    where = sharding.shardings(abstract, mesh_, config.sharding)
    where = where.replace(
        **{
            name: jax.tree.map(lambda s: s.with_memory_kind('pinned_host'), getattr(where, name))
            for name in config.offload
        }
    )
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, where
    )
    sharded_model = unified.build(config, vocabulary, mesh_, platform)
    objective = (objective_of or step.pretraining)(config, sharded_model)
    built = step.build(config, sharded_model, optimizer_of, objective)
    train_step = jax.jit(
        with_stop(from_host(built, config.offload)),
        donate_argnums=0,
        out_shardings=(where, None),
    )
    shardings = checkpoint_files.flatten(where)

    def initialise_only(paths):
        def new_arrays():
            return {p: x for p, x in checkpoint_files.flatten(new_state()).items() if p in paths}

        return jax.jit(new_arrays, out_shardings={p: shardings[p] for p in paths})()

    return Programs(
        config=config,
        mesh=mesh_,
        model=model,
        abstract=abstract,
        initialise=jax.jit(new_state, out_shardings=where),
        initialise_only=initialise_only,
        train_step=train_step,
        terms=tuple(objective.terms),
    )


def nbytes_per_device(tree) -> float:
    """Bytes per device of a tree of arrays or shapes with shardings."""
    return float(
        sum(
            np.prod(a.sharding.shard_shape(a.shape)) * np.dtype(a.dtype).itemsize
            for a in jax.tree.leaves(tree)
        )
    )
