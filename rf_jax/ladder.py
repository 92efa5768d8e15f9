"""The effect along the ladder: `python -m rf_jax.ladder --folder=runs --workdir=runs/ladder`.

Reads what `rf_jax.study` scored in the folders that the config names, trains nothing, and writes
WORKDIR/ladder.md and ladder.png. configs/ladder.py says which studies those are.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from rf_jax.evaluation import ladder, study_plots
from rf_jax.runtime import command

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Which rungs; configs/ladder.py by default.'
)
_FOLDER = flags.DEFINE(command.PATH, 'folder', 'runs', 'Where the folders of the studies lie.')
_WORKDIR = flags.DEFINE(
    command.PATH, 'workdir', None, 'Where ladder.md and ladder.png are written.'
)


def main(argv):
    del argv
    study_plots.require()
    print(ladder.write(ladder.rungs(_CONFIG.value, Path(_FOLDER.value)), Path(_WORKDIR.value)))


if __name__ == '__main__':
    command.run(main, config='configs/ladder.py', required=['workdir'])
