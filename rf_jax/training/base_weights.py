"""The frozen weights of a run with adapters. Its checkpoints do not hold them: they are read from
`initialise_from` again, at the steps and with the checksums that `base.json` in the workdir has.
"""

import json
from collections.abc import Mapping, Sequence

import jax
from absl import logging

from rf_jax.runtime import checkpoint_files, distributed, paths, storage, workdir
from rf_jax.runtime.errors import Unavailable, UserError, require
from rf_jax.training import initial_weights, state, weight_sources
from rf_jax.training.initial_weights import Origin
from rf_jax.training.weight_sources import Source

FILE = 'base.json'


def record(run, sources: Sequence[Source]) -> None:
    """Writes `base.json` to the workdir of a run with adapters that starts from these sources."""
    if not isinstance(run.abstract, state.AdapterState):
        return
    held = [
        {'from': str(s.folder), 'step': s.step, 'checksum': checksum(s, s.files(s.folder, s.step))}
        for s in sources
    ]
    workdir.write_run_files(run.workdir, {FILE: json.dumps(held, indent=1)})


def beside(run, saved: state.State) -> state.State:
    """The state of a resumed run: what its checkpoint holds and, if it has adapters, their base.

    All processes must call it. Raises UserError if the base is not what it was.
    """
    if not isinstance(run.abstract, state.AdapterState):
        return saved
    sources = recorded(run.config, run.workdir)
    origins = origins_of(run.abstract, sources, run.config)
    for source in sources:
        logging.info('Frozen weights: %s', source)
    found = initial_weights.read(sources, origins, checkpoint_files.flatten(run.abstract))
    leaves = [found[f'base/{path}'] for path in checkpoint_files.flatten(run.abstract.base)]
    base = jax.tree.unflatten(jax.tree.structure(run.abstract.base), leaves)
    record(run, sources)  # they may have been moved
    return run.abstract.replace(base=base).with_saved(saved)


def origins_of(
    abstract: state.AdapterState, sources: Sequence[Source], config
) -> Mapping[str, Origin]:
    """{path in the state: where it comes from} for the leaves of the base."""
    origins = initial_weights.plan(abstract, sources, config)
    return {path: origin for path, origin in origins.items() if path.startswith('base/')}


def recorded(config, folder: paths.AnyPath) -> list[Source]:
    """The sources of a run with adapters, as they were at its start. Raises UserError."""
    try:
        text = distributed.broadcast(lambda: storage.read(folder / FILE))
        held = [(entry['step'], entry['checksum']) for entry in json.loads(text)]
    except Unavailable:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{folder / FILE}, which says to what weights the adapters belong, cannot be read: '
            f'{error}'
        ) from None
    listed = weight_sources.listed(config)
    field = f'initialise_from={config.initialise_from}'
    require(
        len(listed) == len(held),
        f'{field}: the adapters in {folder} were trained beside {len(held)} sources; see {FILE} '
        'there',
    )
    sources = []
    for (kind, other, _), (step, recorded_checksum) in zip(listed, held):
        files = kind.files(other, step)
        require(
            storage.is_folder(files),
            f'{field}: the adapters in {folder} belong to {files}, which is not there. If it was '
            'moved, change initialise_from (resuming: --config.initialise_from; else in '
            f'{folder}/config.json)',
        )
        # Runs are shared between hosts, downloads may be copies of their own.
        own = kind is weight_sources.Downloaded
        found = weight_sources.digest(kind, files) if own else checksum(kind, files)
        require(
            found == recorded_checksum or found not in (other for _, other in held),
            f'{field}: not in the order of {folder / FILE}, where {files} is elsewhere in the list',
        )
        require(
            found == recorded_checksum,
            f'{field}: {files} has changed since the adapters in {folder} were trained beside it; '
            'restore it, or train them again',
        )
        sources.append(kind.open(other, step))
    return sources


def checksum(source: Source | type[Source], top: paths.AnyPath) -> str:
    """`weight_sources.digest` as the first process has it. All processes must call it."""
    return distributed.broadcast(lambda: weight_sources.digest(source, top).encode()).decode()
