"""The jitted programs of a run and their input shapes, built without data or computation."""

import re
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.data import layout
from rf_jax.models import unified
from rf_jax.runtime import checkpoint_files, mesh, sharding
from rf_jax.runtime.errors import UserError, choose
from rf_jax.training import lora, optimizer, state, step, validation


@dataclass(kw_only=True)
class Programs:
    """`train_step(state, batch)` donates its state; `initialise()` makes a sharded state;
    `initialise_only(paths)` makes only the arrays at those paths; `average(state)` is the EMA of
    the whole model.

    `model` runs on one device or as XLA shards it; the train step has its own model, sharded over
    the mesh.
    """

    config: Any
    mesh: Mesh
    model: unified.Unified
    abstract: state.State  # ShapeDtypeStruct with the sharding of each array
    initialise: Callable[[], state.State]
    abstract_average: Any  # like `abstract`
    initialise_only: Callable[[Set[str]], dict[str, jax.Array]]
    average: Callable[[state.State], Any]
    train_step: Callable
    validate: Callable  # of `validation.program`
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


def from_host(function: Callable, names: Sequence[str]) -> Callable:
    """The function of a state and more, for a state whose parts of these names are in host
    memory.
    """

    def from_near(state, *more):
        near = {name: jax.device_put(getattr(state, name), jax.memory.Space.Device)
                for name in names}  # fmt: skip
        return function(state.replace(**near), *more)

    return from_near if names else function


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

    new_state = partial(initial_state, config, model)
    abstract = jax.eval_shape(new_state)
    table = sharding_table(config.sharding, abstract)
    where = sharding.shardings(abstract, mesh_, table, lora.SMALL)
    where = where.replace(
        **{
            name: jax.tree.map(lambda s: s.with_memory_kind('pinned_host'), getattr(where, name))
            for name in config.offload
        }
    )
    abstract = with_shardings(abstract, where)
    sharded_model = unified.build(config, vocabulary, mesh_, platform)
    objective = (objective_of or step.pretraining)(config, sharded_model)
    built = step.build(config, sharded_model, optimizer_of(config), objective)
    train_step = jax.jit(
        with_stop(from_host(built, config.offload)),
        donate_argnums=0,
        out_shardings=(where, None),
    )
    validate = jax.jit(from_host(validation.program(config, sharded_model), config.offload))
    shardings = checkpoint_files.flatten(where)

    def initialise_only(paths):
        def new_arrays():
            return {p: x for p, x in checkpoint_files.flatten(new_state()).items() if p in paths}

        return jax.jit(new_arrays, out_shardings={p: shardings[p] for p in paths})()

    average, abstract_average = attrgetter('ema'), abstract.ema
    if lora.enabled(config):
        complete = jax.eval_shape(lambda held: held.complete(held.ema), abstract)
        placed = sharding.shardings(complete, mesh_, config.sharding)
        merge = jax.jit(lora.merged, static_argnums=2, out_shardings=placed)
        abstract_average = with_shardings(complete, placed)

        def average(held):
            return merge(held.base, sharding.to_device_memory(held.ema), held.scale)

    return Programs(
        config=config,
        mesh=mesh_,
        model=model,
        abstract=abstract,
        abstract_average=abstract_average,
        average=average,
        initialise=jax.jit(new_state, out_shardings=where),
        initialise_only=initialise_only,
        train_step=train_step,
        validate=validate,
        terms=tuple(objective.terms),
    )


def optimizer_of(config) -> Callable:
    """The optimizer of a run as a function of its parameters."""
    return lambda params: optimizer.build(optimizer_fields(config, params), params, config.steps)


def optimizer_fields(config, params) -> ConfigDict:
    """`config.optimizer` for what is trained. Beside adapters everything else is frozen anyway, so
    a pattern of `freeze` may match nothing of it.
    """
    if not lora.enabled(config):
        return config.optimizer
    names, fields = optimizer.paths(params), config.optimizer.copy_and_resolve_references()
    fields.freeze = tuple(p for p in fields.freeze if any(re.search(p, name) for name in names))
    return fields


def initial_state(config, model: unified.Unified) -> state.State:
    """A new state of a run, on one device or as XLA shards it."""
    return state.initialise(
        model,
        optimizer_of(config),
        config.model.representation.codebook_size,
        config.model.encoder.width,
        config.seed,
        config if lora.enabled(config) else None,
    )


def sharding_table(table: Iterable, abstract: state.State) -> tuple:
    """A sharding table with rows for the adapters, if the state has any, before its own."""
    if not isinstance(abstract, state.AdapterState):
        return tuple(table)
    return (*lora.sharding_rows(abstract.base, abstract.params, table), *table)


def with_shardings(shapes: Any, where: Any) -> Any:
    """ShapeDtypeStructs with shardings."""
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where
    )


def nbytes_per_device(tree) -> float:
    """Bytes per device of a tree of arrays or shapes with shardings."""
    return float(
        sum(
            np.prod(a.sharding.shard_shape(a.shape)) * np.dtype(a.dtype).itemsize
            for a in jax.tree.leaves(tree)
        )
    )
