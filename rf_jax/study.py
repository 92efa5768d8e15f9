"""The controlled study: `python -m rf_jax.study --config=configs/study.py --workdir=runs/study`.

Trains the arms one after another, scores them and writes WORKDIR/report.md, results.csv and
pictures. The same command goes on after any interruption. Each run is an ordinary run folder,
WORKDIR/ARM-sSEED, that sample, describe and evaluate take.

RF_JAX_UNFINISHED is the exit code of a study that a signal stopped, as for rf_jax.train.
"""

import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rf_jax.evaluation import study
from rf_jax.runtime import command

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Which arms, how long; configs/study.py by default.'
)
_WORKDIR = flags.DEFINE(
    command.PATH, 'workdir', None, 'Folder of the study; goes on with what it holds.'
)


def main(argv):
    del argv
    if not study.run(_CONFIG.value, _WORKDIR.value):
        return int(os.environ.get('RF_JAX_UNFINISHED', '0'))
    report = Path(_WORKDIR.value) / 'report.md'
    print(report.read_text(encoding='utf-8'))
    print(report)
    return 0


if __name__ == '__main__':
    command.run(main, config='configs/study.py', required=['workdir'])
