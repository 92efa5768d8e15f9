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

from rf_jax.evaluation import compile_report
from rf_jax.learning import checks
from rf_jax.runtime import command, mesh, topology

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/paper/joint.py', 'What to compile.')
_TOPOLOGY = flags.DEFINE_string('topology', 'v5p:8x8x8', 'Chips of a slice, as in v5e:2x4.')
_SLICES = flags.DEFINE_integer('slices', 1, 'Slices, joined by the network.', lower_bound=1)
_ONLY = flags.DEFINE_list('only', ['initialise', 'train_step', 'sample'], 'Programs to compile.')
_SWEEP = flags.DEFINE_bool('sweep', False, 'Try meshes and remat policies for the train step.')
_JSON = flags.DEFINE_string('json', '', 'File for all figures.')
_TABLE = flags.DEFINE_string('table', '', 'Markdown file whose table gets a line a program.')


def main(argv):
    del argv
    jax.config.update('jax_platforms', 'cpu')  # nothing runs on the chips
    config = _CONFIG.value
    checks.check(config)
    devices = topology.devices(_TOPOLOGY.value, _SLICES.value)
    vocabulary = config.tokenizer.vocabulary
    name = f'{_SLICES.value} x {_TOPOLOGY.value}'
    print(f'{name}: {len(devices)} chips, {config.data.rows} rows', flush=True)
    found, ok = [], True
    if _SWEEP.value:
        mesh_of = lambda changed: mesh.make_mesh(changed.mesh, devices)  # noqa: E731
        tried = list(compile_report.sweep(config, vocabulary, mesh_of, len(devices)))
        print(compile_report.ranked(tried))
        ok = any(fit for *_, fit in tried)
        found = [{'fields': fields, 'fits': fit} | (
            {'needs': cost} if isinstance(cost, str) else compile_report.as_json(cost)
        ) for fields, cost, fit in tried]  # fmt: skip
    else:
        devices = mesh.make_mesh(config.mesh, devices)
        for compiled in compile_report.each(config, vocabulary, devices, _ONLY.value):
            print(compiled.text, flush=True)
            ok &= compiled.fits
            found.append(compiled.values)
            if _TABLE.value and compiled.cost:
                what = config_flags.get_config_filename(flags.FLAGS['config'])
                line = compile_report.markdown(what, name, config, compiled.cost, devices)
                compile_report.add_line(Path(_TABLE.value), line)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(found, indent=1), encoding='utf-8')
    sys.exit(0 if ok else 2)


if __name__ == '__main__':
    command.run(main)
