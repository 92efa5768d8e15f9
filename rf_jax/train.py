"""Train: `python -m rf_jax.train --config=configs/emoji.py --workdir=runs/emoji`.

The same command resumes what the workdir holds. Any field of the config can be overridden:
`--config.optimizer.learning_rate=1e-3`.
"""

from absl import flags, logging
from ml_collections import config_flags

from rf_jax.evaluation import report
from rf_jax.learning import loop
from rf_jax.runtime import command, metrics

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/emoji.py', 'What to train.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; resumes what it holds.')


def main(argv):
    del argv
    run = loop.build(_CONFIG.value, _WORKDIR.value)
    state = loop.train(run, report.while_training(run))
    if int(state.step) == run.config.steps and run.config.evaluation.samples:
        print(report.at_end(run, state))
    logging.info('Peak memory %.1f GB', metrics.peak_memory_gb())


if __name__ == '__main__':
    command.run(main, required=['workdir'])
