"""Reads the parameters of a run for use: those of its checkpoint or, if it trained adapters, those
of its base with the adapters merged in.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from rf_jax.generation.placement import Placement
from rf_jax.models import unified
from rf_jax.runtime import checkpoint, checkpoint_files, paths
from rf_jax.training import base_weights, initial_weights, jitted, lora


def read_params(
    workdir: paths.AnyPath,
    step: int | None,
    config: ConfigDict,
    vocabulary: int,
    placement: Placement,
    part: str = 'ema',
) -> tuple[int, Any]:
    """(step of the checkpoint, parameters of the whole model), each device reading its own shards.

    `step`: None is the newest. `part`: 'ema' or 'params'. Raises UserError.
    """
    folder = workdir / 'checkpoints'
    if not lora.enabled(config):
        step, saved = checkpoint.restore_placed(folder, step, only=part, place=placement.shapes)
        return step, saved[part]
    new_state = partial(jitted.initial_state, config, unified.build(config, vocabulary))
    abstract = jax.eval_shape(new_state)
    table = placement.table and jitted.sharding_table(placement.table, abstract)
    exact = replace(placement, table=table, dtype=None)  # merged before it is rounded
    step, saved = checkpoint.restore_placed(folder, step, only=part, place=exact.shapes)
    trained = checkpoint_files.flatten(saved[part])

    wanted = checkpoint_files.flatten(placement.shapes({'base': abstract.base}))
    adapted = {path for path in wanted if f'{path.removeprefix("base/")}/a' in trained}
    precise = checkpoint_files.flatten(exact.shapes({'base': abstract.base}))
    asked = wanted | {path: precise[path] for path in adapted}
    sources = base_weights.recorded(config, workdir)
    origins = base_weights.origins_of(abstract, sources, config)
    base = initial_weights.read(sources, origins, asked)
    base = {path.removeprefix('base/'): leaf for path, leaf in base.items()}
    return step, _merged(config, base, trained, placement)


def _merged(config: ConfigDict, base: Mapping, trained: Mapping, placement: Placement) -> dict:
    """Parameters with the shardings and dtypes of the placement; frees those of the base."""
    whole = jax.eval_shape(partial(lora.merged, scale=1.0), base, trained)
    wanted = placement.shapes(whole)

    def merge(base, trained):
        merged = lora.merged(base, trained, lora.scale_of(config))
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), merged, wanted)

    same = placement.dtype is None  # else the old buffers cannot be used
    where = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    return jax.jit(merge, out_shardings=where, donate_argnums=(0,) if same else ())(base, trained)
