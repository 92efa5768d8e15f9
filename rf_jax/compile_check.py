"""Compile for a pod without having one: `python -m rf_jax.compile_check --topology=v5p:8x8x8
--config=configs/paper.py:joint`.

Compiles the initialisation, the train step and generation for the chips of a topology and prints
the memory, FLOPs, network traffic and roofline time of each. `--only=sample,answer` compiles
images and answers alone, sharded for inference, as --mesh says. Exit code 0 if all fit into
90 % of a chip's memory, 2 if not. Needs libtpu (pip install -e '.[tpu]') but no TPU. For GPUs,
`--topology=h100:8` needs JAX's plugin for CUDA (pip install -e '.[gpu]') but no GPU; `h100:2x8` are
two hosts. `--topology=cpu:8` compiles for virtual CPU devices.
"""

import json
import sys
import textwrap
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from rf_jax.planning import compile_report, roofline, topology
from rf_jax.runtime import cli, model_flags, workdir
from rf_jax.runtime.errors import UserError, choose

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to compile; configs/paper.py:joint by default.'
)
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v5p:8x8x8', 'TPU slice or GPUs to compile for, as in v5e:2x4, h100:8 or h100:2x8.'
)
_SLICES = flags.DEFINE_integer('slices', 1, 'Number of slices, connected by DCN.', lower_bound=1)
_ONLY = flags.DEFINE_list('only', ['initialise', 'train_step', 'sample'], 'Programs to compile.')
_MESH = flags.DEFINE(
    model_flags.MESH,
    'mesh',
    None,
    'For sample and answer, as in tensor:4,expert:2; else as heads allow.',
)
_SWEEP = flags.DEFINE_bool('sweep', False, 'Try meshes and remat policies for the train step.')
_JSON = flags.DEFINE(cli.PATH, 'json', None, 'File to write all figures to.')
_TABLE = flags.DEFINE(
    cli.PATH, 'table', None, 'Markdown file; a row per program is added to its table.'
)


def sweep(config: ConfigDict, devices) -> tuple[bool, list]:
    """(whether any variant fits, all figures); prints each when compiled, then all ranked."""
    tried = []
    variants = compile_report.sweep(config, config.tokenizer.vocab_size, devices)
    for fields, cost, fit in variants:
        tried.append((fields, cost, fit))
        print(compile_report.sweep_table(tried[-1:]).splitlines()[-1], flush=True)
    print(compile_report.sweep_table(tried))
    return any(fit for *_, fit in tried), [compile_report.tried_as_json(*each) for each in tried]


def check(config: ConfigDict, devices, name: str) -> tuple[bool, list]:
    """(whether all programs fit, their figures); prints each when compiled."""
    results = []
    for mesh_, names in compile_report.meshes(config, devices, _ONLY.value, _MESH.value):
        for checked in compile_report.compile_programs(
            config, config.tokenizer.vocab_size, mesh_, names
        ):
            print(checked.text, flush=True)
            results.append(checked)
            if _TABLE.value and checked.cost:
                what = config_flags.get_config_filename(flags.FLAGS['config'])
                line = compile_report.markdown(what, name, config, checked.cost, mesh_)
                compile_report.add_line(Path(_TABLE.value), line)
    print(textwrap.fill(roofline.ASSUMED[devices[0].platform], 100))
    return all(checked.fits for checked in results), [checked.values for checked in results]


def check_flags() -> None:
    """Raises UserError for output files that cannot be written, for programs that are not known,
    and for flags without effect.
    """
    for name, path in (('json', _JSON.value), ('table', _TABLE.value)):
        if path:
            check_file(name, Path(path))
    for name in _ONLY.value or ['']:
        choose('--only', name, compile_report.PROGRAMS)
    for name in ('only', 'table'):
        if _SWEEP.value and flags.FLAGS[name].present:
            raise UserError(f'--{name} has no effect with --sweep: omit one of them')
    if _MESH.value and (_SWEEP.value or not set(_ONLY.value) & set(compile_report.INFERENCE)):
        raise UserError(
            f'--mesh is for {" and ".join(compile_report.INFERENCE)}, which are not compiled: add '
            'one to --only, or set config.mesh for training'
        )


def check_file(name: str, path: Path) -> None:
    """Raises UserError now if --name=path could not be written after hours of compiling."""
    if not path.parent.is_dir():
        raise UserError(f'--{name}={path}: no such folder: {path.parent}')
    if path.is_dir():
        raise UserError(f'--{name}={path} is a folder; give a file')
    workdir.check_writable(path.parent, name)
    try:
        if path.exists():
            with path.open('r+', encoding='utf-8') as file:
                file.read()
    except (OSError, ValueError) as error:
        raise UserError(f'--{name}={path} is not a text file to write to: {error}') from None


def main(argv):
    del argv
    check_flags()
    jax.config.update('jax_platforms', 'cpu')  # nothing runs on the chips
    config = _CONFIG.value
    devices = topology.devices(_TOPOLOGY.value, _SLICES.value)
    name = f'{_SLICES.value} x {_TOPOLOGY.value}'
    print(f'{name}: {len(devices)} chips, {config.data.batch_size} rows', flush=True)
    fits, figures = sweep(config, devices) if _SWEEP.value else check(config, devices, name)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(figures, indent=1), encoding='utf-8')
    sys.exit(0 if fits else 2)


if __name__ == '__main__':
    cli.run(main, config='configs/paper.py:joint')
