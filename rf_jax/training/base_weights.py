"""The frozen weights of a run with adapters. Its checkpoints do not hold them: they are read from
`initialise_from` again, at the steps and with the checksums that `base.json` in the workdir has.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import logging

from rf_jax.runtime import checkpoint, checkpoint_files, distributed, workdir
from rf_jax.runtime.errors import UserError, require
from rf_jax.training import initial_weights, state
from rf_jax.training.initial_weights import Origin, Source

FILE = 'base.json'
PIECE = 4096  # bytes of the beginning and of the end of a file that its checksum covers


def record(run, sources: Sequence[Source]) -> None:
    """Writes `base.json` to the workdir of a run with adapters that starts from these sources."""
    if not isinstance(run.abstract, state.AdapterState):
        return
    held = [{'run': str(source.folder), 'step': source.step, 'checksum': _checksum(source)}
            for source in sources]  # fmt: skip
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
        logging.info('Frozen weights: %s at step %d', source.folder, source.step)
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


def recorded(config, folder: Path) -> list[Source]:
    """The sources of a run with adapters, as they were at its start. Raises UserError."""
    try:
        text = distributed.broadcast((folder / FILE).read_bytes)
        held = [(entry['step'], entry['checksum']) for entry in json.loads(text)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{folder / FILE}, which says to what weights the adapters belong, cannot be read: '
            f'{error}'
        ) from None
    others = initial_weights.other_runs(config)
    field = f'initialise_from={config.initialise_from}'
    require(
        len(others) == len(held),
        f'{field}: the adapters in {folder} were trained from {len(held)} runs; see {FILE} there',
    )
    sources = []
    for other, (step, checksum) in zip(others, held):
        require(
            checkpoint.has_step(other, step),
            f'{field}: the adapters in {folder} belong to step {step} of {other}, which is not '
            'there. If that run was moved, change initialise_from (resuming: '
            f'--config.initialise_from; else in {folder}/config.json)',
        )
        sources.append(initial_weights.open_run(other, step))
        require(
            _checksum(sources[-1]) == checksum,
            f'{field}: step {step} of {other} has changed since the adapters in {folder} were '
            'trained beside it; restore it, or train them again',
        )
    return sources


def _checksum(source: Source) -> str:
    """Of the names, sizes, first and last bytes of the files of a checkpoint, which are written
    once: cheap, whatever their size.
    """
    top = source.folder / 'checkpoints' / str(source.step)

    def digest() -> bytes:
        found = hashlib.sha256()
        for path in sorted(path for path in top.rglob('*') if path.is_file()):
            size = path.stat().st_size
            found.update(f'{path.relative_to(top)} {size}\n'.encode())
            with path.open('rb') as file:
                found.update(file.read(PIECE))
                file.seek(max(size - PIECE, 0), os.SEEK_SET)
                found.update(file.read(PIECE))
        return found.hexdigest().encode()

    return distributed.broadcast(digest).decode()
