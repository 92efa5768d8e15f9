"""Train: `python -m rf_jax.train --config=configs/emoji.py --workdir=runs/emoji`.

The same command resumes from the newest checkpoint. Any field of configs/base.py is a flag, as in
`--config.optimizer.learning_rate=1e-3`. On several hosts, run it on each (launch/README.md).
The exit code tells a launcher whether to run the command again (runtime/errors.py).
"""

from absl import flags
from ml_collections import config_flags

from rf_jax.evaluation import run_report
from rf_jax.runtime import cli, profiling, workdir
from rf_jax.runtime.errors import require
from rf_jax.training import checks, train_loop

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to train; configs/emoji.py by default.'
)
_WORKDIR = flags.DEFINE(
    cli.ANY_PATH, 'workdir', None, 'Folder of the run; an existing run is resumed.'
)
_PROFILE = flags.DEFINE_string('profile', '', 'Steps to trace, first:last, as in 10:15.')


def main(argv):
    del argv
    traced = profiling.parse(_PROFILE.value)
    checks.check(_CONFIG.value)  # before the workdir is created
    require('grpo' not in _CONFIG.value, 'the config has grpo: rf_jax.reinforce runs it')
    with workdir.training_lock(_WORKDIR.value):
        run = train_loop.build(_CONFIG.value, _WORKDIR.value)
        run_report.check(run)
        while_training = run_report.while_training(run)
        # Without a name for the state, so that its memory is free for the evaluation.
        return run_report.finish(run, train_loop.train(run, while_training, traced))


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py', required=['workdir'], multiprocess=True)
