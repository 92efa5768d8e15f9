"""Checks of a run: impossible config values, changed configs and data, non-finite numbers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from rf_jax.data import pipeline, source_list, spans
from rf_jax.models import autoencoder
from rf_jax.runtime import mesh, paths, renamed_fields, sharding
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training import bounds, flow, initial_weights, jitted, optimizer

DTYPES = dict.fromkeys(('float32', 'bfloat16'))


def start(
    config, devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, dict[int, np.ndarray]]:
    """(mesh of a run, {process: its rows of a batch}), after all checks that need no data.

    Training and the compile check both start here. `devices`: all by default; they may be those of
    a topology. Raises UserError for anything that would stop a process of the run.
    """
    check(config)
    pipeline.check(config)
    mesh_ = mesh.make_mesh(config.mesh, devices)
    jitted.check(config, mesh_)
    return mesh_, mesh.rows_by_process(mesh_, config.data.batch_size)


def check(config) -> None:
    """Raises UserError for values that would fail later with a less helpful error."""
    choose('compute_dtype', config.compute_dtype, DTYPES)
    choose('sampling.method', config.sampling.method, flow.METHODS)
    bounds.check(flatten(config.to_dict()))
    source_list.check(config.data.sources)  # before the workdir is created
    if config.tokenizer.path:
        paths.local(config.tokenizer.path, 'tokenizer.path')
    initial_weights.other_runs(config)  # raises for URLs
    require(any(config.losses.values()), 'all weights of losses are 0: nothing would be trained')
    spans.pool_of(config)
    choose('model.space', config.model.space, autoencoder.SPACES)
    learned = config.losses.reconstruction > 0
    latents = config.model.space == 'vae'
    require(
        latents or not learned,
        f"losses.reconstruction={config.losses.reconstruction} needs model.space='vae'",
    )
    require(
        not latents or learned or optimizer.frozen('autoencoder/', config.optimizer.freeze),
        "model.space='vae' needs a frozen autoencoder: set optimizer.freeze=('^autoencoder/',) and "
        'initialise_from to a run that trained it (losses.reconstruction)',
    )
    require(
        not learned or not config.losses.flow,
        'losses.reconstruction and losses.flow are both above 0: the latents would change while '
        'the flow learns them; train the autoencoder in a run of its own first (initialise_from)',
    )
    require(
        learned or not config.losses.kl,
        f'losses.kl={config.losses.kl} needs losses.reconstruction above 0: it applies to the '
        'autoencoder while it is being trained',
    )
    for name in ('balance', 'router_z'):
        require(
            not config.losses[name] or config.model.backbone.ffn == 'moe',
            f"losses.{name}={config.losses[name]} needs model.backbone.ffn='moe'",
        )


def warn_of_changes(config, workdir: Path) -> None:
    """Logs the config fields that differ from those that this workdir was trained with so far.

    Raises UserError if the workdir was written by an earlier version, with other field names.
    """
    try:
        before = json.loads((workdir / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return
    renamed_fields.check(before, workdir / 'config.json')
    before = flatten(before)
    for field, value in flatten(json.loads(config.to_json_best_effort())).items():
        if before.get(field) != value:
            was = before.get(field)
            logging.warning('%s is %r now and was %r in this workdir', field, value, was)


def warn_of_other_data(data: str, workdir: Path) -> None:
    """Logs a warning if the sources no longer hold the data that this workdir was trained on."""
    try:
        before = json.loads((workdir / 'version.json').read_text(encoding='utf-8'))['data']
    except (OSError, ValueError, KeyError):
        return
    if before != data:
        logging.warning(
            'the data is now %s and was %s: examples come in a different order, some of them twice '
            'in this epoch',
            data,
            before,
        )


def warn_of_new_weights(config) -> None:
    """Logs the config fields that assume pretrained weights; for a run that has none."""
    representation, losses = config.model.representation, config.losses
    for assumes, field, effect in (
        (
            config.model.space == 'vae' and not losses.reconstruction,
            "model.space='vae' without losses.reconstruction",
            'uses the latents of an untrained autoencoder',
        ),
        (not config.ema.warmup, 'ema.warmup=False', 'keeps random weights in the average for long'),
        (
            representation.kind == 'forcing' and not representation.quantizer.data_init_steps,
            'model.representation.quantizer.data_init_steps=()',
            'leaves the codebook at random prototypes',
        ),
    ):
        if assumes:
            logging.warning(
                '%s %s: it assumes weights of another run, but initialise_from is empty',
                field,
                effect,
            )


def warn_of_source_run(config, other: Path, step: int) -> None:
    """Logs a warning if the run that weights come from is not finished, or if its codebook would be
    replaced.
    """
    try:
        was = flatten(json.loads((other / 'config.json').read_text(encoding='utf-8')))
        steps, kind = was['steps'], was['model.representation.kind']
    except (OSError, ValueError, KeyError, AttributeError):
        return
    if step < steps:
        logging.warning('%s is at step %d of %d; finish its training first?', other, step, steps)
    mine = config.model.representation
    learned = kind == 'forcing' and was.get('data.tasks.text_to_image', 0) > 0
    reinitialised = any(re.search(pattern, 'codebook') for pattern in config.initialise_new)
    if learned and mine.kind == 'forcing' and mine.quantizer.data_init_steps and not reinitialised:
        logging.warning(
            'the codebook of %s is replaced at steps %s, which discards what representation tokens '
            'have learned; to keep it, set '
            'model.representation.quantizer.data_init_steps=()',
            other,
            ', '.join(map(str, mine.quantizer.data_init_steps)),
        )


def changes(before: Mapping, now: Mapping) -> Iterator[tuple[str, str]]:
    """(field, text with both values) of each field that differs between two flat configs."""
    for field in sorted(before.keys() | now.keys()):
        if now.get(field) != before.get(field):
            yield field, f'{field} is {now.get(field)!r} and was {before.get(field)!r}'


def flatten(tree: Mapping, above: str = '') -> dict[str, Any]:
    """Nested dictionaries to {dotted name: value}."""
    found = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f'{above}{name}.')
        else:
            found[above + name] = value
    return found


@jax.jit
def _finite(leaves) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in leaves]))


def all_finite(tree) -> bool:
    """Whether all numbers of all floating-point arrays are finite.

    Arrays in host memory are copied to the device one at a time, since all of them may not fit.
    """
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    far = [x for x in leaves if x.sharding.memory_kind == 'pinned_host']
    here = [x for x in leaves if x.sharding.memory_kind != 'pinned_host']
    return bool(_finite(here)) and all(bool(_finite([sharding.near(x)])) for x in far)


def not_finite(number: int) -> UserError:
    """The error for a non-finite state after step `number`."""
    return UserError(
        f'the state is not finite after step {number} and was not saved. Lower '
        'optimizer.learning_rate and run again: it resumes from the last checkpoint'
    )


def raise_unless_finite(number: int, state) -> None:
    """Raises UserError, so that no bad state is saved (design rule 9)."""
    if not all_finite(state):
        raise not_finite(number)
