"""Train: `python -m rf_jax.train --config=configs/emoji.py --workdir=runs/emoji`.

The same command resumes from the newest checkpoint. Any config field can be overridden:
`--config.optimizer.learning_rate=1e-3`. On several hosts, run it on each (launch/README.md).
The exit code tells a launcher whether to run the command again (runtime/errors.py).
"""

from absl import flags, logging
from ml_collections import config_flags

from rf_jax.evaluation import run_report
from rf_jax.runtime import cli, distributed, errors, metrics, profiling, workdir
from rf_jax.training import checks, train_loop
from rf_jax.training.state import State

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to train; configs/emoji.py by default.'
)
_WORKDIR = flags.DEFINE(cli.PATH, 'workdir', None, 'Folder of the run; an existing run is resumed.')
_PROFILE = flags.DEFINE_string('profile', '', 'Steps to trace, first:last, as in 10:15.')


def main(argv):
    del argv
    traced = profiling.parse(_PROFILE.value)
    checks.check(_CONFIG.value)  # before the workdir is created
    with workdir.training_lock(_WORKDIR.value):
        run = train_loop.build(_CONFIG.value, _WORKDIR.value)
        run_report.check(run)
        state = train_loop.train(run, run_report.while_training(run), traced)
        step = int(state.step)
        if not run.stopped and run.config.evaluation.samples:
            state = state.replace(params=None, opt_state=None)  # only the EMA is evaluated
            with run.goodput.phase('evaluation'):
                _evaluate(run, state)
        run.goodput.save(step, distributed.is_main())
        logging.info('%s', run.goodput.table())
        logging.info('Peak memory %.1f GB', metrics.peak_memory_gb())
        return errors.INTERRUPTED if run.stopped else errors.DONE


def _evaluate(run: train_loop.Run, state: State) -> None:
    """Evaluates the finished run. Errors are only logged: the training is complete and saved."""
    try:
        table = run_report.at_end(run, state)
        if distributed.is_main():
            print(table)
    except Exception as error:
        distributed.abort(error, errors.DONE)  # others may be waiting in a collective
        logging.exception(
            'The evaluation failed; the training is complete and saved. Once the cause is fixed, '
            'python -m rf_jax.evaluate --workdir=%s evaluates it',
            run.workdir,
        )


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py', required=['workdir'], multiprocess=True)
