"""Initialising a run from other runs and from pretrained weights (`initialise_from`).

Arrays are read straight into their shards: no process reads more than the shards of its own
devices. The optimizer state is not read. The order of a start, each step for all sources before
the next: their folders and files (`check`), the plan of which array comes from where (`plan`),
reading, and initialising the rest (`from_sources`).
"""

import difflib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from rf_jax.data.tokenizer import KINDS, tokenizer_file
from rf_jax.interop.pretrained import PREFIX
from rf_jax.runtime import (
    checkpoint,
    checkpoint_files,
    checkpoint_folder,
    distributed,
    paths,
    storage,
)
from rf_jax.runtime.errors import UserError, require
from rf_jax.training import jitted, lora, optimizer, state, weight_sources
from rf_jax.training.weight_sources import TAKEN, Source

SHOWN = 10  # most paths in an error message


class Origin(NamedTuple):
    """Where an array comes from: the index of the source, and the path there."""

    source: int
    path: str


def check(config) -> None:
    """Raises UserError for an entry of `initialise_from` that is not the folder of a run, or of
    pretrained weights that fit the config and are the same on all hosts. All processes must call
    it.
    """
    for number, (kind, folder, step) in enumerate(weight_sources.listed(config)):
        if kind is not weight_sources.Run:
            continue
        fault = _fault(folder) or _no_step(folder, step)
        if not (fault or number or config.tokenizer.path or tokenizer_file(folder)):
            fault = (
                f'{folder} has no {" and no ".join(KINDS)}: copy it there, or set tokenizer.path'
            )
        hint = _comma(config.initialise_from) if fault else ''
        require(not fault, f'initialise_from={config.initialise_from!r}: {fault}{hint}')
    for folder in weight_sources.downloads(config):
        try:
            require(
                not checkpoint.exists_in(folder),
                f'{folder} is the folder of a run: give it without {PREFIX}',
            )
            weights = weight_sources.Downloaded(folder).pretrained
            weights.check(config)
            if distributed.is_main():
                weights.check_tied()
        except UserError as error:
            hint = _comma(config.initialise_from)
            raise UserError(f'initialise_from={config.initialise_from!r}: {error}{hint}') from None
        if jax.process_count() > 1:  # each reads its own copy, if the folder is not shared
            checksum = weight_sources.digest(weight_sources.Downloaded, folder)
            field = f'{folder} of initialise_from'
            distributed.check_same(f'files with the checksum {checksum[:12]}', field)


def _comma(text: str) -> str:
    """Advice for a path with a comma, which was read as two entries."""
    parts = (part.removeprefix(PREFIX) for part in text.split(','))
    if any(Path(f'{a},{b}').expanduser().exists() for a, b in itertools.pairwise(parts)):
        return r'. A comma within a path is written \, (backslash, comma)'
    return ''


def _fault(folder: paths.AnyPath) -> str:
    """What is wrong with the folder of a run to start from; '' if nothing is."""
    if checkpoint.exists_in(folder):
        return ''
    if not storage.is_local(folder):
        return f'{folder} has no checkpoint (looked in {folder}/checkpoints)'
    run = next((above for above in (folder, *folder.parents) if checkpoint.exists_in(above)), None)
    if run:
        return f'{folder} is inside a run; give the folder of the run, {run}'
    if any(folder.glob('*.safetensors')):
        return f'{folder} has pretrained weights, which are given as {PREFIX}{folder}'
    if folder.is_file():
        return f'{folder} is a file; give the folder of a run'
    if folder.is_dir():
        fault, place = f'{folder} has no checkpoint (looked in {folder}/checkpoints)', folder
    else:
        fault, place = f'{folder.absolute()} does not exist', folder.parent
    runs = [path.name for path in sorted(place.glob('*')) if checkpoint.exists_in(path)]
    near = difflib.get_close_matches(folder.name, runs, n=1)
    if near:
        return f'{fault}; did you mean {place / near[0]}?'
    shown = ', '.join(runs[:SHOWN]) or 'none'
    return f'{fault}; runs with checkpoints in {place.absolute()}: {shown}'


def _no_step(folder: paths.AnyPath, step: int | None) -> str:
    """What is wrong with a step of a run; '' if nothing is."""
    steps = [] if step is None else checkpoint_folder.steps(folder / 'checkpoints')
    known = step is None or step in steps
    return '' if known else f'{folder} has no checkpoint of step {step}; it has {steps}'


def from_sources(run: jitted.Programs) -> tuple[state.State, list[Source]]:
    """The state at step 0 with weights, EMA and codebook of the sources, and the sources. All
    processes must call it.

    Each array is read or initialised with the sharding of `run.abstract`, without a second copy on
    the devices. Raises UserError for arrays that no source has in this shape, a source from which
    nothing is used, and a damaged source.
    """
    sources = [kind.open(folder, at) for kind, folder, at in weight_sources.listed(run.config)]
    origins = plan(run.abstract, sources, run.config)
    fields = jitted.optimizer_fields(run.config, run.abstract.params)
    text = table(run.abstract, sources, origins, fields)
    logging.info('Where each parameter comes from:\n%s', text)
    names = checkpoint_files.flatten(run.abstract)
    found = read(sources, origins, names)
    new = run.initialise_only(names.keys() - found.keys())
    leaves = [found[name] if name in found else new[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(run.abstract), leaves), sources


def plan(abstract: state.State, sources: Sequence[Source], config) -> dict[str, Origin]:
    """{path in the state: where its array comes from}; arrays that are not in it are new.

    An array comes from the first source that has its path, after rewriting by `initialise_as`,
    unless a regex of `weight_sources.new` matches. Frozen parameters start from their EMA, which is
    what was evaluated and what targets are computed with: starting from the weights would make the
    EMA, which must not change, drift towards them. With `initialise_from_average` all do, and in
    runs with adapters. Raises UserError.
    """
    average = config.initialise_from_average or lora.enabled(config)
    new = weight_sources.new(config)
    origins, wrong = {}, {}
    for name, leaf in _taken(abstract).items():
        part, _, path = name.partition('/')
        path = path or name  # the codebook has no path
        if any(re.search(pattern, path) for pattern in new):
            require(part != 'base', f'{path} is new, but frozen: add it to lora.full')
            continue
        frozen = average or optimizer.frozen(path, config.optimizer.freeze)
        if part == 'base' or (part == 'params' and frozen):
            part = 'ema'
        for pattern, replacement in config.initialise_as:
            path = re.sub(pattern, replacement, path)
        there = path if part == name else f'{part}/{path}'
        origin = next(
            (Origin(i, found) for i, source in enumerate(sources) if (found := source.find(there))),
            None,
        )
        has = origin and sources[origin.source].shape(origin.path)
        if has == leaf.shape:
            origins[name] = origin
        else:
            wrong[there] = has or 'absent', leaf.shape
    require(
        not wrong,
        f'initialise_from={config.initialise_from}: does not fit this config ({len(wrong)}): '
        f'{_faults(wrong)}. {_advice(wrong)}',
    )
    for number, source in enumerate(sources):
        require(
            any(origin.source == number for origin in origins.values()),
            f'initialise_from={config.initialise_from}: nothing of {source.folder} is used, since '
            'earlier runs have it, or initialise_new matches it; remove it from the list',
        )
    return origins


# {path: (what the sources have, what the config expects)}, as shapes
Wrong = Mapping[str, tuple[Any, tuple[int, ...]]]


def _faults(wrong: Wrong) -> str:
    shown = list(wrong.items())[:SHOWN]
    return '; '.join(f'{path}: {has}, expected {wanted}' for path, (has, wanted) in shown)


def _advice(wrong: Wrong) -> str:
    """What to do about arrays that do not fit."""
    for path, (has, wanted) in wrong.items():
        if path.endswith('/text_embed/table') and has != 'absent' and has[0] != wanted[0]:
            return (
                f'The tokenizer has {wanted[0]} ids, these weights have {has[0]}: set '
                'tokenizer.path to the folder of the tokenizer that they were trained with, where '
                'config.json gives the number of rows'
            )
    return 'List in initialise_new what should be initialised instead'


def read(
    sources: Sequence[Source], origins: Mapping[str, Origin], wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """{path in the state: array} for all origins, with the shardings and dtypes of `wanted`."""
    found: dict[str, jax.Array] = {}
    for number, source in enumerate(sources):
        own = {to: origin.path for to, origin in origins.items() if origin.source == number}
        if own:  # none, if the base of adapters takes nothing from it
            found |= _read(source, own, wanted)
    return found


def _taken(abstract: state.State) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: leaf} of what can come from other runs: all but adapters, which are new."""
    parts = {name: getattr(abstract, name) for name in (*TAKEN, 'base') if hasattr(abstract, name)}
    found = checkpoint_files.flatten(parts)
    return {path: leaf for path, leaf in found.items() if not lora.is_adapter(path)}


def _read(source: Source, paths: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """{path in the state: array} for one source, reading each of its arrays once."""
    first = {}
    for name, path in paths.items():
        first.setdefault(path, name)
    read = source.read({path: wanted[name] for path, name in first.items()})
    found = {}
    for name, path in paths.items():
        array = read[path]
        if first[path] != name:  # a copy, since the state is donated; it may be in host memory
            array = jax.device_put(jnp.copy(array), wanted[name].sharding)
        found[name] = array
    return found


def table(
    abstract: state.State, sources: Sequence[Source], origins: Mapping[str, Origin], config
) -> str:
    """One line per group of parameters: their number, the source they come from, and how fast they
    learn where `config.optimizer` sets a factor.
    """
    factors = optimizer.lr_multipliers(abstract.params, config.lr_multipliers, config.freeze)
    factor_of = checkpoint_files.flatten({'params': factors})
    counts: Counter = Counter()
    for name, leaf in _taken(abstract).items():
        origin, group, factor = origins.get(name), _group(name), factor_of.get(name, 1.0)
        text = 'new'
        if origin:
            path = origin.path.replace('ema/', 'params/', 1) if group != 'ema' else origin.path
            text = str(sources[origin.source])
            text += f', its {_group(path)}' if _group(path) != group else ''
            text += ', its average' if path != origin.path else ''
        text += f'; learning rate x {factor:g}' if factor not in (0.0, 1.0) else ''
        counts[group, text] += leaf.size
    width = max(len(group) for group, _ in counts)
    return '\n'.join(
        f'{group:{width}}  {count:>15,}  {text}' for (group, text), count in counts.items()
    )


def _group(name: str) -> str:
    """backbone/layers/pixels, encoder, text_head, ...; the whole EMA is one group."""
    part, *path = name.split('/')
    if part not in ('params', 'base'):
        return part
    return '/'.join(path[:3] if path[0] == 'backbone' and len(path) > 3 else path[:1])
