r"""Writes the weights of a run for other programs.

python -m rf_jax.export --workdir=runs/emoji --to=hf:exported
python -m rf_jax.export --workdir=runs/emoji --to=orbax:runs/start

hf: makes a folder with one folder that transformers opens for each part (`qwen3` or `qwen3_moe`,
`dinov3_vit`), and `rf_jax`, safetensors of the whole model by our own names. orbax: makes the
folder of a run without its optimizer, sharded over the devices here: `rf_jax.sample` and
`initialise_from` take it.
"""

import contextlib
import json
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from rf_jax.interop import exporting, kept
from rf_jax.runtime import checkpoint, checkpoint_slices, cli, mesh, paths, sharding, workdir
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.training.weight_sources import TAKEN

WEIGHTS = {'average': 'ema', 'raw': 'params'}  # part of the state
RUN_FILES = ('config.json', 'tokenizer.model', 'tokenizer.json', 'version.json', 'parameters.txt')

_WORKDIR = flags.DEFINE(cli.PATH, 'workdir', None, 'Folder of the run.')
_TO = flags.DEFINE_string('to', None, 'hf: or orbax:, then a path that does not exist yet.')
_WEIGHTS = flags.DEFINE_enum(
    'weights', 'average', list(WEIGHTS), 'For hf: the averages, which are what is evaluated, or '
    'the weights that training goes on with.'
)  # fmt: skip
_CHECKPOINT = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', lower_bound=0
)


def to_hf(run: Path, step: int, weights: str, folder: Path) -> None:
    """Writes the parts that transformers opens, and the whole model beside them."""
    config = ConfigDict(json.loads((run / 'config.json').read_text(encoding='utf-8')))
    arrays = checkpoint_slices.arrays(run, step, WEIGHTS[weights])
    vocabulary = arrays['text_embed/table'].shape[0]
    parts = exporting.described(config, vocabulary) | kept.originals(run)
    for kind, original in parts.items():
        (folder / kind).mkdir()
        exporting.export(kind, original, config, arrays, folder / kind)
    (folder / 'rf_jax').mkdir()
    exporting.export_all(arrays, folder / 'rf_jax')
    shutil.copyfile(run / 'config.json', folder / 'rf_jax' / 'config.json')
    tokenizer = run / 'tokenizer.json'
    if tokenizer.exists():
        for kind in parts.keys() & {'qwen3', 'qwen3_moe'}:
            shutil.copyfile(tokenizer, folder / kind / tokenizer.name)


def to_orbax(run: Path, step: int, weights: str, folder: Path) -> None:
    """Writes a run without its optimizer, both weights and averages."""
    del weights
    config = ConfigDict(json.loads((run / 'config.json').read_text(encoding='utf-8')))
    mesh_ = mesh.make_mesh(dict.fromkeys(mesh.AXES, 1) | {'fsdp': -1})

    def place(held):
        wanted = {name: held[name] for name in TAKEN}
        where = sharding.shardings(wanted, mesh_, config.sharding)
        return jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), wanted, where
        )

    _, state = checkpoint.restore_placed(run / 'checkpoints', step, None, place)
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', every=1, keep=1)
    checkpoints.save(step, state)
    checkpoints.ensure(step, state)
    checkpoints.close()
    for name in RUN_FILES:
        if (run / name).exists():
            shutil.copyfile(run / name, folder / name)
    kept.hand_on(run, folder)


KINDS = {'hf': to_hf, 'orbax': to_orbax}


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name once the block has ended well."""
    require(not folder.exists(), f'--to: {folder} exists; give a folder that does not')
    temporary = folder.with_name(f'.{folder.name}.{secrets.token_hex(4)}.tmp')
    workdir.check_writable(temporary, 'to')
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(_) -> None:
    run = paths.local(_WORKDIR.value, '--workdir')
    kind, colon, name = _TO.value.partition(':')
    require(bool(colon), f'--to={_TO.value}: expected hf:FOLDER or orbax:FOLDER')
    write, folder = choose('--to', kind, KINDS), paths.local(name, '--to')
    if not (run / 'config.json').exists():
        raise UserError(f'--workdir={run} has no config.json; give the folder of a run')
    step = _CHECKPOINT.value
    step = checkpoint.latest(run / 'checkpoints')[0] if step is None else step
    require(checkpoint.has_step(run, step), f'--checkpoint={step}: {run} has no such checkpoint')
    with _new_folder(folder) as temporary:
        write(run, step, _WEIGHTS.value, temporary)
    logging.info('Step %d of %s is in %s', step, run, folder)


if __name__ == '__main__':
    cli.run(main, required=['workdir', 'to'])
