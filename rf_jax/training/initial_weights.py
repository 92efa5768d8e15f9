"""How a run starts from the weights of others (`initialise_from`): which arrays come from where,
read straight into their shards. No process reads more than the shards of its own devices, and
nothing of the optimizer.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from flax import traverse_util

from rf_jax.runtime import checkpoint, checkpoint_files, distributed, paths
from rf_jax.runtime.errors import UserError, require
from rf_jax.training import jitted, optimizer, state

TAKEN = ('params', 'ema', 'codebook')  # parts of a state that another run may start from
SHOWN = 10  # most paths of an error message


class Source(NamedTuple):
    """The newest checkpoint of another run, and its arrays by path, as shapes and types."""

    folder: Path
    step: int
    held: Mapping[str, jax.ShapeDtypeStruct]


class Origin(NamedTuple):
    """An array of a checkpoint: the number of its source, and its path there."""

    source: int
    path: str


def other_runs(config) -> list[Path]:
    """Folders of `initialise_from`. Raises UserError for a URL."""
    parts = (part.strip() for part in config.initialise_from.split(','))
    return [paths.local(part, 'initialise_from') for part in parts if part]


def check(config) -> None:
    """Raises UserError, in one line, for an entry of `initialise_from` that is no run's folder."""
    for number, folder in enumerate(other_runs(config)):
        fault, tokenizer = _fault(folder), folder / 'tokenizer.model'
        if not (fault or number or config.tokenizer.path or tokenizer.exists()):
            fault = f'{folder} holds no tokenizer.model: copy it there, or set tokenizer.path'
        require(not fault, f'initialise_from={config.initialise_from!r}: {fault}')


def _fault(folder: Path) -> str:
    """What is wrong with the folder of a run to start from; '' if nothing is."""
    if checkpoint.exists_in(folder):
        return ''
    run = next((above for above in (folder, *folder.parents) if checkpoint.exists_in(above)), None)
    if run:
        return f'{folder} lies within a run; give its folder, {run}'
    if folder.is_file():
        return f'{folder} is a file; give the folder of a run'
    if folder.is_dir():
        fault, place = f'{folder} holds no checkpoint (looked in {folder}/checkpoints)', folder
    else:
        fault, place = f'there is no folder {folder.absolute()}', folder.parent
    runs = [path.name for path in sorted(place.glob('*')) if checkpoint.exists_in(path)]
    near = difflib.get_close_matches(folder.name, runs, n=1)
    if near:
        return f'{fault}; did you mean {place / near[0]}?'
    shown = ', '.join(runs[:SHOWN]) or 'none'
    return f'{fault}; runs with checkpoints in {place.absolute()}: {shown}'


def from_others(run: jitted.Programs) -> tuple[state.State, list[Source]]:
    """The state at step 0 with weights, averages and codebook of other runs. All must call it.

    Each array is read, or born new, with the sharding of `run.abstract`: beside the state itself
    the devices hold no second copy. Raises UserError for arrays that no source has in this shape,
    a source that gives nothing, and a damaged one.
    """
    sources = [_open(folder) for folder in other_runs(run.config)]
    origins = plan(run.abstract, sources, run.config)
    logging.info('Where each parameter comes from:\n%s', table(run.abstract, sources, origins))
    found: dict[str, jax.Array] = {}
    for number, source in enumerate(sources):
        paths = {to: origin.path for to, origin in origins.items() if origin.source == number}
        found |= _read(source, paths, checkpoint_files.flatten(run.abstract))
    names = checkpoint_files.flatten(run.abstract)
    new = run.initialise_only(names.keys() - found.keys())
    leaves = [found[name] if name in found else new[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(run.abstract), leaves), sources


def _open(folder: Path) -> Source:
    """Of the same step on all hosts, also while the other run goes on and saves."""
    directory = folder / 'checkpoints'
    step = int(distributed.broadcast(lambda: str(checkpoint.latest(directory)[0]).encode()))
    held = checkpoint_files.read_metadata(directory.resolve() / str(step))
    if not set(TAKEN) <= held.keys():
        raise UserError(
            f'initialise_from: the checkpoint in {directory} holds {", ".join(sorted(held))}, where'
            f' {", ".join(TAKEN)} were looked for: it is of another kind of run'
        )
    return Source(folder, step, checkpoint_files.flatten({name: held[name] for name in TAKEN}))


def plan(abstract: state.State, sources: Sequence[Source], config) -> dict[str, Origin]:
    """{path in the state: where its array comes from}; what is not in it is new.

    An array comes from the first source that has its path, as `initialise_as` rewrites it, unless
    a regex of `initialise_new` matches. What `optimizer.freeze` holds starts as its average, which
    is what was scored and what targets are made of: weights of their own would draw the average
    after them, which shall not move. Raises UserError.
    """
    origins, wrong = {}, []
    for name, leaf in checkpoint_files.flatten({n: getattr(abstract, n) for n in TAKEN}).items():
        part, _, path = name.partition('/')
        path = path or name  # of the codebook
        if any(re.search(pattern, path) for pattern in config.initialise_new):
            continue
        if part == 'params' and optimizer.frozen(path, config.optimizer.freeze):
            part = 'ema'
        for pattern, replacement in config.initialise_as:
            path = re.sub(pattern, replacement, path)
        there = path if part == name else f'{part}/{path}'
        number = next((i for i, source in enumerate(sources) if there in source.held), None)
        has = None if number is None else sources[number].held[there].shape
        if has == leaf.shape:
            origins[name] = Origin(number, there)
        else:
            wrong.append(f'{there}: {has or "absent"}, expected {leaf.shape}')
    require(
        not wrong,
        f'initialise_from={config.initialise_from}: does not fit this config ({len(wrong)}): '
        f'{"; ".join(wrong[:SHOWN])}. initialise_new names what shall start from new values',
    )
    for number, source in enumerate(sources):
        require(
            any(origin.source == number for origin in origins.values()),
            f'initialise_from={config.initialise_from}: {source.folder} gives nothing, as what it '
            'holds is in a run before it, or starts new (initialise_new); take it off the list',
        )
    return origins


def _read(source: Source, paths: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """{path in the state: array} of what comes from a source, each array of it read once."""
    first = {}
    for name, path in paths.items():
        first.setdefault(path, name)
    shapes = {tuple(path.split('/')): wanted[name] for path, name in first.items()}
    tree = traverse_util.unflatten_dict(shapes)
    read = checkpoint_files.flatten(
        checkpoint.restore_parts(source.folder / 'checkpoints', source.step, tree)
    )
    found = {}
    for name, path in paths.items():
        array = read[path]
        if first[path] != name:  # a copy, as the state is donated; it may lie in the host's memory
            array = jax.device_put(jnp.copy(array), wanted[name].sharding)
        found[name] = array
    return found


def table(abstract: state.State, sources: Sequence[Source], origins: Mapping[str, Origin]) -> str:
    """A line for each group of parameters: how many, and which source and step they come from."""
    counts: Counter = Counter()
    for name, leaf in checkpoint_files.flatten({n: getattr(abstract, n) for n in TAKEN}).items():
        origin, group = origins.get(name), _group(name)
        told = 'new'
        if origin:
            source = sources[origin.source]
            path = origin.path.replace('ema/', 'params/', 1) if group != 'ema' else origin.path
            told = f'{source.folder} at step {source.step}'
            told += f', its {_group(path)}' if _group(path) != group else ''
            told += ', its average' if path != origin.path else ''
        counts[group, told] += leaf.size
    width = max(len(group) for group, _ in counts)
    return '\n'.join(
        f'{group:{width}}  {count:>15,}  {told}' for (group, told), count in counts.items()
    )


def _group(name: str) -> str:
    """backbone/layers/pixels, encoder, text_head, ...; all of the average is one."""
    part, *path = name.split('/')
    if part != 'params':
        return part
    return '/'.join(path[:3] if path[0] == 'backbone' and len(path) > 3 else path[:1])
