"""Writes the weights of a run for other programs: as folders that transformers opens, or as a run
without its optimizer.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from rf_jax.data.tokenizer import KINDS as TOKENIZERS
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.generation.placement import ONE_DEVICE
from rf_jax.generation.trained_weights import read_params
from rf_jax.interop import exporting, kept
from rf_jax.runtime import (
    checkpoint,
    checkpoint_files,
    checkpoint_slices,
    mesh,
    paths,
    sharding,
    storage,
    workdir,
)
from rf_jax.runtime.errors import UserError, require
from rf_jax.training import lora
from rf_jax.training.weight_sources import TAKEN

WEIGHTS = {'average': 'ema', 'raw': 'params'}  # part of the state
ANY = ''  # a regex: what fits no other way is replicated
RUN_FILES = (*TOKENIZERS, 'version.json')


def to_hf(run: paths.AnyPath, step: int, weights: str | None, folder: Path) -> None:
    """Writes the parts that transformers opens, and the whole model beside them; the averaged
    weights by default.
    """
    config = _config(run)
    arrays = _arrays(run, step, config, WEIGHTS[weights or 'average'])
    vocabulary = arrays['text_embed/table'].shape[0]
    parts = exporting.described(config, vocabulary)
    parts |= {kind: each for kind, each in kept.originals(run).items() if kind in parts}
    for kind, original in parts.items():
        (folder / kind).mkdir()
        exporting.export(kind, original, config, arrays, folder / kind)
    (folder / 'rf_jax').mkdir()
    exporting.export_all(arrays, folder / 'rf_jax')
    _write_config(config, folder / 'rf_jax')
    tokenizer = run / 'tokenizer.json'
    if storage.exists(tokenizer):
        for kind in parts.keys() & {'qwen3', 'qwen3_moe'}:
            storage.write(folder / kind / tokenizer.name, storage.read(tokenizer))
            _end_answers(folder / kind / 'generation_config.json', load_tokenizer(run).ends)


def _end_answers(path: Path, ends: Sequence[int]) -> None:
    """Adds the ids that end an answer here to those at which transformers stops: base models do not
    have the mark of chat models.
    """
    held = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    there = held.get('eos_token_id') or []
    there = there if isinstance(there, list) else [there]
    missing = [end for end in ends if end not in there]
    if missing:
        held['eos_token_id'] = there + missing
        path.write_text(json.dumps(held, indent=2), encoding='utf-8')


def to_orbax(run: paths.AnyPath, step: int, weights: str | None, folder: Path) -> None:
    """Writes a run without its optimizer, both weights and averages; adapters are merged in. Raises
    UserError if one of both is asked for.
    """
    require(
        weights is None,
        f'--weights={weights} is for --to=hf: alone; orbax: writes both, so leave it out',
    )
    config = _config(run)
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', every=1, keep=1)
    state = _state(run, step, config)
    checkpoints.save(step, state)
    checkpoints.ensure(step, state)  # raises if it could not be written
    checkpoints.close()
    _write_config(config, folder)
    for name in RUN_FILES:
        if storage.exists(run / name):
            storage.write(folder / name, storage.read(run / name))
    overview = sharding.overview(state['params'])  # adapters are no longer parameters
    (folder / 'parameters.txt').write_text(overview, encoding='utf-8')
    kept.hand_on(run, folder)


KINDS = {'hf': to_hf, 'orbax': to_orbax}


def _config(run: paths.AnyPath) -> ConfigDict:
    """Raises UserError."""
    path = run / 'config.json'
    try:
        return ConfigDict(json.loads(storage.read(path)))
    except UserError:  # of a bucket
        raise
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {error}') from None


def _write_config(config: ConfigDict, folder: Path) -> None:
    """Of the whole model: adapters are merged in."""
    if lora.enabled(config):
        config = config.copy_and_resolve_references()
        config.lora.rank, config.initialise_from = 0, ''
    (folder / 'config.json').write_text(config.to_json_best_effort(indent=2), encoding='utf-8')


def _arrays(run: paths.AnyPath, step: int, config: ConfigDict, part: str) -> Mapping[str, Any]:
    """Parameters by path, read where they are sliced; with adapters, merged on one device."""
    if not lora.enabled(config):
        return checkpoint_slices.arrays(run, step, part)
    merged = checkpoint_files.flatten(_merged(run, step, config, part))
    return {path: np.asarray(leaf) for path, leaf in merged.items()}


def _merged(run: paths.AnyPath, step: int, config: ConfigDict, part: str) -> dict[str, Any]:
    """Parameters of the whole model of a run with adapters."""
    return read_params(run, step, config, load_tokenizer(run).size, ONE_DEVICE, part)[1]


def _state(run: paths.AnyPath, step: int, config: ConfigDict) -> dict[str, Any]:
    """What another run starts from, sharded over the devices here: over a power of two of them,
    which most dimensions are multiples of.
    """
    devices = jax.devices()
    devices = devices[: 1 << (len(devices).bit_length() - 1)]
    mesh_ = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1) | {'fsdp': -1}, devices)

    def place(held):
        wanted = {name: held[name] for name in TAKEN if name in held}
        where = sharding.shardings(wanted, mesh_, config.sharding, small=ANY)
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), wanted, where
        )

    if not lora.enabled(config):
        return checkpoint.restore_placed(run / 'checkpoints', step, None, place)[1]
    state = checkpoint.restore_placed(run / 'checkpoints', step, 'codebook', place)[1]
    return state | {part: _merged(run, step, config, part) for part in WEIGHTS.values()}


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name once the block has ended well."""
    require(not folder.exists(), f'--to: {folder} exists; give a folder that does not')
    temporary = folder.with_name(f'.{folder.name}.{secrets.token_hex(4)}.tmp')
    workdir.check_writable(temporary, 'to')
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
