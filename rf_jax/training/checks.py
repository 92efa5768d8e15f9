"""Checks of a run: impossible config values, changed configs and data, non-finite numbers."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from rf_jax.data import data_fields, source_list, spans
from rf_jax.models import representation, spaces
from rf_jax.runtime import mesh, paths, renamed_fields, sharding, storage
from rf_jax.runtime.errors import Unavailable, UserError, choose, require
from rf_jax.training import (
    bounds,
    flow,
    jitted,
    lora,
    losses,
    optimizer,
    validation,
    weight_sources,
)

# Parameters that generate images, by the field of the config that may keep those of a source out.
GENERATION = {'initialise_new': 'patch_in/patch/kernel', 'initialise_as': 'backbone/layers/pixels/'}
DTYPES = dict.fromkeys(('float32', 'bfloat16'))


def start(
    config, devices: Sequence[jax.Device] | None = None
) -> tuple[Mesh, dict[int, np.ndarray]]:
    """(mesh of a run, {process: its rows of a batch}), after all checks that need no data.

    Training and the compile check both start here. `devices`: all by default; they may be those of
    a topology. Raises UserError for anything that would stop a process of the run.
    """
    check(config)
    data_fields.check(config)
    mesh_ = mesh.make_mesh(config.mesh, devices)
    try:  # of use only when the trained model is loaded
        sharding.check_rows(config.sampling.sharding, mesh_)
    except UserError as error:
        raise UserError(f'sampling.{error}') from None
    jitted.check(config, mesh_)
    return mesh_, mesh.rows_by_process(mesh_, config.data.batch_size)


def check(config) -> None:
    """Raises UserError for values that would fail later with a less helpful error."""
    choose('compute_dtype', config.compute_dtype, DTYPES)
    choose('sampling.method', config.sampling.method, flow.METHODS)
    bounds.check(flatten(config.to_dict()))
    source_list.check(config.data.sources)  # before the workdir is created
    validation.check(config)
    if config.tokenizer.path:
        paths.anywhere(config.tokenizer.path, 'tokenizer.path')
    weight_sources.listed(config)  # raises for URLs
    require(any(config.losses.values()), 'all weights of losses are 0: nothing would be trained')
    spans.pool_of(config)
    representation.check(config)
    require(
        losses.build(config),
        f'model.representation.kind={config.model.representation.kind!r} has no term of losses '
        'with a weight above 0: nothing would be trained',
    )
    for pattern in config.optimizer.freeze:
        optimizer.frozen('', (pattern,))  # raises if it is not a regular expression
    for pattern in config.initialise_new:
        optimizer.matches('initialise_new', pattern, '')
    for pattern, replacement in config.initialise_as:
        optimizer.matches('initialise_as', pattern, '')
        _check_replacement(pattern, replacement)
    lora.check(config)
    spaces.of(config).check(config)
    require(
        config.losses.reconstruction > 0 or not config.losses.kl,
        f'losses.kl={config.losses.kl} needs losses.reconstruction above 0: it is a loss of the '
        'autoencoder in training',
    )
    for name in ('balance', 'router_z'):
        require(
            not config.losses[name] or config.model.backbone.ffn == 'moe',
            f"losses.{name}={config.losses[name]} needs model.backbone.ffn='moe'",
        )


def _check_replacement(pattern: str, replacement: str) -> None:
    """Raises UserError for a replacement of `initialise_as` with a group that is not there."""
    try:
        re.sub(pattern, replacement, '')
    except (re.error, IndexError) as error:
        raise UserError(
            f'initialise_as: {replacement!r} is no replacement for {pattern!r}: {error}'
        ) from None


def check_version(workdir: paths.AnyPath) -> None:
    """Raises UserError if an earlier version wrote the workdir, with other field names."""
    before = _config_of(workdir)
    if before:
        renamed_fields.check(before, workdir / 'config.json')


def check_command(config, workdir: paths.AnyPath) -> None:
    """Raises UserError if the run in the workdir is one of the other command: reinforcement would
    go on in the folder of the run that it should start from, or the reverse.
    """
    before = _config_of(workdir)
    if before and ('grpo' in before) != ('grpo' in config):
        command = 'reinforce' if 'grpo' in before else 'train'
        raise UserError(
            f'--workdir={workdir} is a run of rf_jax.{command}: give another folder, and '
            f'--config.initialise_from={workdir} to start from this run'
        )


def check_adapters(config, workdir: paths.AnyPath) -> None:
    """Raises UserError for another `lora.alpha` than that of the adapters in the workdir: it would
    scale what they have learned.
    """
    before = flatten(_config_of(workdir)).get('lora.alpha', config.lora.alpha)
    require(
        not lora.enabled(config) or config.lora.alpha == before,
        f'lora.alpha={config.lora.alpha:g}, but the adapters in --workdir={workdir} were trained '
        f'with {before:g}: keep it, or give another folder',
    )


def _config_of(workdir: paths.AnyPath) -> dict:
    """The config that the workdir was trained with so far; {} if it cannot be read."""
    return _json_of(workdir / 'config.json')


def _version_of(workdir: paths.AnyPath) -> dict:
    """Versions and data that the workdir was trained with so far; {} if they cannot be read."""
    return _json_of(workdir / 'version.json')


def _json_of(path: paths.AnyPath) -> dict:
    """The object in a file, {} if there is none. Raises Unavailable."""
    try:
        found = json.loads(storage.read(path))
    except Unavailable:
        raise
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def warn_of_changes(config, workdir: paths.AnyPath) -> None:
    """Logs the config fields that differ from those that this workdir was trained with so far, and
    which of them change nothing any more; in one line those that it was trained without, since they
    are newer than it is.
    """
    before, new = flatten(_config_of(workdir)), []
    ignored = _read_at_the_start(config)
    for field, value in flatten(json.loads(config.to_json_best_effort())).items():
        if field not in before:
            new.append(f'{field}={value!r}')
        elif before[field] != value:
            effect = ': no effect, as the run has started' if field in ignored else ''
            logging.warning(
                '%s is %r now and was %r in this workdir%s', field, value, before[field], effect
            )
    if before and new:
        logging.info('Fields that this workdir was trained without: %s', ', '.join(new))


def _read_at_the_start(config) -> set[str]:
    """Fields that a resumed run does not read again."""
    found = {'initialise_from_average', 'tokenizer.path', 'tokenizer.vocab_size'}
    if not lora.enabled(config):  # adapters belong to weights that are not saved
        found.add('initialise_as')
        if config.ema.warmup:  # else what is new has another average
            found.add('initialise_new')
            if 'grpo' not in config:  # else it may name the reference
                found.add('initialise_from')
    return found


def warn_of_other_data(data: str, workdir: paths.AnyPath) -> None:
    """Logs a warning if the sources no longer hold the data that this workdir was trained on."""
    before = _version_of(workdir).get('data', data)
    if before != data:
        logging.warning(
            'the data is now %s and was %s: examples come in a different order, some of them twice '
            'in this epoch',
            data,
            before,
        )


def warn_of_new_weights(config) -> None:
    """Logs a warning for each field that needs the weights of another run; for a run without."""
    effects = spaces.of(config).needs_weights(config)
    if not config.ema.warmup:
        effects['ema.warmup=False'] = 'keeps random weights long in the average'
    effects |= representation.of(config).needs_weights(config)
    for field, effect in effects.items():
        logging.warning(
            '%s %s: this needs the weights of another run, but initialise_from is empty',
            field,
            effect,
        )


def warn_of_source_run(config, other: paths.AnyPath, step: int) -> None:
    """Logs a warning if the run that weights come from is not finished, if what it has learned of
    generating images would be discarded, or its codebook replaced.
    """
    try:
        was = flatten(json.loads(storage.read(other / 'config.json')))
        steps, kind = was['steps'], was['model.representation.kind']
    except (OSError, ValueError, KeyError, AttributeError):
        return
    if step < steps:
        logging.warning('%s is at step %d of %d; finish its training first?', other, step, steps)
    generated = was.get('data.tasks.text_to_image', 0) > 0
    fields = [
        field
        for field, path in GENERATION.items()
        if any(re.search(entry[0] if field == 'initialise_as' else entry, path)
               for entry in config[field])
    ]  # fmt: skip
    if generated and was.get('losses.flow', 0) > 0 and fields:
        logging.warning(
            '%s has learned to generate images, which is discarded by %s: to go on from it, set %s',
            *(other, ' and '.join(fields), ' and '.join(f'{field}=()' for field in fields)),
        )
    if generated and kind == config.model.representation.kind:
        lost = representation.of(config).discards(config, str(other))
        if lost:
            logging.warning('%s', lost)


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
    return bool(_finite(here)) and all(bool(_finite([sharding.to_device_memory(x)])) for x in far)


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
