"""The controlled study: `python -m rf_jax.study --config=configs/study.py --workdir=runs/study`.

Trains the arms one after another, scores them and writes WORKDIR/report.md, results.csv and
pictures. The same command goes on after any interruption. Each run is an ordinary run folder,
WORKDIR/ARM-sSEED, that sample, describe and evaluate take.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rf_jax.evaluation import study
from rf_jax.runtime import command, exits

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Which arms, how long; configs/study.py by default.'
)
_WORKDIR = flags.DEFINE(
    command.PATH, 'workdir', None, 'Folder of the study; goes on with what it holds.'
)


def main(argv):
    del argv
    if not study.run(_CONFIG.value, _WORKDIR.value):
        return exits.INTERRUPTED
    report = Path(_WORKDIR.value) / 'report.md'
    print(report.read_text(encoding='utf-8'))
    print(report)
    return exits.DONE


if __name__ == '__main__':
    command.run(main, config='configs/study.py', required=['workdir'])
