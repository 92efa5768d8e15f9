"""Compile for a pod without the pod: `python -m rf_jax.compile_check --topology=v5p:8x8x8
--config=configs/paper/joint.py`.

Compiles the birth of the state, the train step and the drawing of pictures for the topology's chips
and prints the memory, FLOPs, network traffic and roofline time of each. Exit code 0 if all fit into
90 % of a chip's memory, 2 if not. Needs libtpu (pip install -e '.[tpu]'), but no TPU; `--topology=
cpu:8` takes pretended CPU devices.
"""

import json
import sys
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from rf_jax.planning import compile_report, topology
from rf_jax.runtime import cli
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to compile; configs/paper/joint.py by default.'
)
_TOPOLOGY = flags.DEFINE_string('topology', 'v5p:8x8x8', 'Chips of a slice, as in v5e:2x4.')
_SLICES = flags.DEFINE_integer('slices', 1, 'Slices, joined by the network.', lower_bound=1)
_ONLY = flags.DEFINE_list('only', ['initialise', 'train_step', 'sample'], 'Programs to compile.')
_SWEEP = flags.DEFINE_bool('sweep', False, 'Try meshes and remat policies for the train step.')
_JSON = flags.DEFINE(cli.PATH, 'json', None, 'File for all figures.')
_TABLE = flags.DEFINE(cli.PATH, 'table', None, 'Markdown file whose table gets a line a program.')


def sweep(config, devices) -> tuple[bool, list]:
    """(whether any variant fits, its figures); prints each as it comes, then all in order."""
    tried = []
    variants = compile_report.sweep(config, config.tokenizer.vocab_size, devices)
    for fields, cost, fit in variants:
        tried.append((fields, cost, fit))
        print(compile_report.sweep_table(tried[-1:]).splitlines()[-1], flush=True)
    print(compile_report.sweep_table(tried))
    return any(fit for *_, fit in tried), [compile_report.tried_as_json(*each) for each in tried]


def check(config, devices, name: str) -> tuple[bool, list]:
    """(whether all programs fit, their figures); prints each as it comes."""
    mesh_, rows = checks.start(config, devices)
    each = sorted({len(held) for held in rows.values()})
    print(f'{len(rows)} processes, rows of each: {" or ".join(map(str, each))}', flush=True)
    found = []
    for checked in compile_report.compile_programs(
        config, config.tokenizer.vocab_size, mesh_, _ONLY.value
    ):
        print(checked.text, flush=True)
        found.append(checked)
        if _TABLE.value and checked.cost:
            what = config_flags.get_config_filename(flags.FLAGS['config'])
            line = compile_report.markdown(what, name, config, checked.cost, mesh_)
            compile_report.add_line(Path(_TABLE.value), line)
    print(compile_report.ASSUMED)
    return all(checked.fits for checked in found), [checked.values for checked in found]


def check_flags() -> None:
    """Raises UserError for what would be lost after the compilation, or ignored."""
    for name, path in (('json', _JSON.value), ('table', _TABLE.value)):
        if path and not Path(path).parent.is_dir():
            raise UserError(f'--{name}={path}: there is no folder {Path(path).parent}')
        if path and Path(path).is_dir():
            raise UserError(f'--{name}={path} is a folder; give a file')
    for name in ('only', 'table'):
        if _SWEEP.value and flags.FLAGS[name].present:
            raise UserError(f'--{name} has no meaning with --sweep: leave one of them out')


def main(argv):
    del argv
    check_flags()
    jax.config.update('jax_platforms', 'cpu')  # nothing runs on the chips
    config = _CONFIG.value
    devices = topology.devices(_TOPOLOGY.value, _SLICES.value)
    name = f'{_SLICES.value} x {_TOPOLOGY.value}'
    print(f'{name}: {len(devices)} chips, {config.data.batch_size} rows', flush=True)
    fits, found = sweep(config, devices) if _SWEEP.value else check(config, devices, name)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1), encoding='utf-8')
    sys.exit(0 if fits else 2)


if __name__ == '__main__':
    cli.run(main, config='configs/paper/joint.py')
