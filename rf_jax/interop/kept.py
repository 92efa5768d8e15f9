"""What an export needs of the original: its config.json, and the tensors that we have no place for.

A run keeps them in its folder, `pretrained/MODEL_TYPE/`, and so do the runs that start from it.
"""

import atexit
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from rf_jax.interop import writing
from rf_jax.interop.files import Folder
from rf_jax.interop.pretrained import FLOATS, Pretrained
from rf_jax.runtime import paths, storage

FOLDER = 'pretrained'
FILES = (
    'config.json',
    'generation_config.json',
    'preprocessor_config.json',
    'tokenizer_config.json',
    'chat_template.jinja',
)
OF_A_PART = ('preprocessor_config.json',)  # of these, those of a part of a larger model
COPIES = 'copies.json'  # names of tensors that were there and equal others
DTYPES = 'dtypes.json'  # of each tensor, if config.json does not say it


class Original(NamedTuple):
    """What a part of the model was, or is to be written as. `files`: to be copied as they are;
    `made`: the content of other JSON files by name.
    """

    config: dict[str, Any]  # of config.json
    copies: frozenset[str] = frozenset()
    tensors: Sequence[tuple[writing.Spec, np.ndarray]] = ()
    files: Sequence[Path] = ()
    made: Mapping[str, Any] = MappingProxyType({})
    dtypes: Mapping[str, str] = MappingProxyType({})  # of tensors, where config.json has none

    def names(self) -> frozenset[str]:
        """The names of tensors that are known to be there."""
        return self.copies | {spec.name for spec, _ in self.tensors}


def keep(weights: Pretrained, workdir: paths.AnyPath) -> None:
    """Writes what to keep of a folder of weights, if its family is exported: at most a few MB, with
    the pooling head of SigLIP2 some tens.
    """
    if weights.family.describe is None:
        return
    config, _ = weights.family.part(weights.config)
    own = workdir / FOLDER / config['model_type']
    storage.delete_folder(own)  # of another source, which may have files that this one lacks
    if storage.is_local(own):
        own.mkdir(parents=True, exist_ok=True)
        _write(weights, own)
        return
    with tempfile.TemporaryDirectory() as local:
        _write(weights, Path(local))
        storage.copy(local, own)


def _write(weights: Pretrained, own: Path) -> None:
    source, (config, prefix) = weights.folder, weights.family.part(weights.config)
    for name in OF_A_PART if prefix else FILES:
        if (source.path / name).exists():
            shutil.copyfile(source.path / name, own / name)
    if prefix:
        (own / 'config.json').write_text(json.dumps(config, indent=2), encoding='utf-8')
    copies = [copy for _, copy in weights.family.same(weights.config, source.entries.keys())]
    (own / COPIES).write_text(json.dumps(copies), encoding='utf-8')
    unused = re.compile('|'.join(weights.family.unused) or r'(?!)')
    ours = {name: each for name, each in source.entries.items() if name.startswith(prefix)}
    left = {name: each for name, each in ours.items() if unused.search(name)}
    specs = [writing.Spec(name.removeprefix(prefix), each.shape, each.dtype)
             for name, each in left.items()]  # fmt: skip
    writing.write(own, specs, map(source.tensor, left))
    if not config.get('dtype', config.get('torch_dtype')):
        dtypes = {name.removeprefix(prefix): FLOATS[each.dtype] for name, each in ours.items()
                  if name not in left}  # fmt: skip
        (own / DTYPES).write_text(json.dumps(dtypes), encoding='utf-8')


def forget(workdir: paths.AnyPath) -> None:
    """Removes what a workdir keeps, of an earlier start."""
    storage.delete_folder(workdir / FOLDER)


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
            dtypes=_dtypes(path.parent / DTYPES),
        )
    return found


def _dtypes(path: Path) -> dict[str, str]:
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
