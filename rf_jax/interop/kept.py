"""What an export needs of the original: its config.json, and the tensors that we have no place for.

A run keeps them in its folder, `pretrained/MODEL_TYPE/`, and so do the runs that start from it.
"""

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rf_jax.interop import writing
from rf_jax.interop.files import Folder
from rf_jax.interop.pretrained import Pretrained
from rf_jax.runtime import paths, storage

FOLDER = 'pretrained'
FILES = (
    'config.json',
    'generation_config.json',
    'preprocessor_config.json',
    'tokenizer_config.json',
    'chat_template.jinja',
)
COPIES = 'copies.json'  # names of tensors that were there and equal others


class Original(NamedTuple):
    """What a part of the model was, or is to be written as. `files`: to be copied as they are."""

    config: dict[str, Any]  # of config.json
    copies: frozenset[str] = frozenset()
    tensors: Sequence[tuple[writing.Spec, np.ndarray]] = ()
    files: Sequence[Path] = ()


def keep(weights: Pretrained, workdir: paths.AnyPath) -> None:
    """Writes what to keep of a folder of weights, at most a few MB, if its family is exported."""
    if weights.family.describe is None:
        return
    own = workdir / FOLDER / weights.config['model_type']
    if storage.is_local(own):
        own.mkdir(parents=True, exist_ok=True)
        _write(weights, own)
        return
    with tempfile.TemporaryDirectory() as local:
        _write(weights, Path(local))
        storage.copy(local, own)


def _write(weights: Pretrained, own: Path) -> None:
    source = weights.folder
    for name in FILES:
        if (source.path / name).exists():
            shutil.copyfile(source.path / name, own / name)
    copies = [copy for _, copy in weights.family.same(weights.config, source.entries.keys())]
    (own / COPIES).write_text(json.dumps(copies), encoding='utf-8')
    unused = re.compile('|'.join(weights.family.unused) or r'(?!)')
    entries = {name: each for name, each in source.entries.items() if unused.search(name)}
    specs = [writing.Spec(name, each.shape, each.dtype) for name, each in entries.items()]
    writing.write(own, specs, map(source.tensor, entries))


def forget(workdir: paths.AnyPath) -> None:
    """Removes what a workdir keeps, of an earlier start."""
    folder = workdir / FOLDER
    if storage.is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for name in storage.sizes_below(folder):
            storage.delete(folder / name)


def hand_on(other: paths.AnyPath, workdir: paths.AnyPath) -> None:
    """Keeps what another run has kept."""
    storage.copy(other / FOLDER, workdir / FOLDER)


def originals(workdir: paths.AnyPath) -> dict[str, Original]:
    """{model_type: original} of what a run keeps; from a bucket, copied here until the end."""
    found = {}
    if not storage.is_local(workdir):
        local = Path(tempfile.mkdtemp(prefix='rf_jax_kept_'))
        atexit.register(shutil.rmtree, local, ignore_errors=True)
        hand_on(workdir, local)
        workdir = local
    for path in (workdir / FOLDER).glob(f'*/{COPIES}'):
        folder = Folder(path.parent)
        tensors = [(writing.Spec(name, each.shape, each.dtype), folder.tensor(name))
                   for name, each in folder.entries.items()]  # fmt: skip
        found[path.parent.name] = Original(
            folder.config,
            frozenset(json.loads(path.read_text(encoding='utf-8'))),
            tensors,
            [path.parent / name for name in FILES if (path.parent / name).exists()],
        )
    return found
