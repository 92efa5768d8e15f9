"""The controlled study: `python -m rf_jax.study --config=configs/study.py --workdir=runs/study`.

Trains the arms one by one, scores them and writes WORKDIR/report.md, results.csv and figures. The
same command resumes after any interruption. Each run is an ordinary workdir, WORKDIR/ARM-sSEED,
which sample, describe and evaluate accept.

    python -m rf_jax.study --config=configs/ladder.py --studies=runs --workdir=runs/ladder

compares finished studies rung by rung: it trains nothing and writes WORKDIR/ladder.md and
ladder.png.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rf_jax.runtime import cli, errors
from rf_jax.runtime.errors import require
from rf_jax.study import ladder, plots, runner

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Which arms and how long; configs/study.py by default.'
)
_STUDIES = flags.DEFINE(
    cli.PATH,
    'studies',
    None,
    'Folder of finished studies, to compare those named in configs/ladder.py.',
)
_WORKDIR = flags.DEFINE(
    cli.PATH, 'workdir', None, 'Folder of the study; an existing study is resumed.'
)


def main(argv):
    del argv
    workdir = Path(_WORKDIR.value)
    if _STUDIES.value:
        require(
            'rungs' in _CONFIG.value,
            '--studies needs a config that names rungs: --config=configs/ladder.py',
        )
        plots.require()
        print(ladder.write(ladder.rungs(_CONFIG.value, Path(_STUDIES.value)), workdir))
        return errors.DONE
    require(
        'rungs' not in _CONFIG.value,
        'this config compares finished studies: give their folder as --studies=FOLDER',
    )
    if not runner.run(_CONFIG.value, workdir):
        return errors.INTERRUPTED
    report = workdir / 'report.md'
    print(report.read_text(encoding='utf-8'))
    print(report)
    return errors.DONE


if __name__ == '__main__':
    cli.run(main, config='configs/study.py', required=['workdir'])
