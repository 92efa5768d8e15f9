"""Train: `python -m rf_jax.train --config=configs/emoji.py --workdir=runs/emoji`.

The same command resumes what the workdir holds. Any field of the config can be overridden:
`--config.optimizer.learning_rate=1e-3`. On several hosts run it on each (launch/README.md).
Its exit code tells a launcher whether to give the command again (runtime/exits.py).
"""

from absl import flags, logging
from ml_collections import config_flags

from rf_jax.evaluation import run_report
from rf_jax.runtime import cli, distributed, exits, metrics, profile, workdir
from rf_jax.training import checks, train_loop
from rf_jax.training.state import State

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to train; configs/emoji.py by default.'
)
_WORKDIR = flags.DEFINE(cli.PATH, 'workdir', None, 'Folder of the run; resumes what it holds.')
_PROFILE = flags.DEFINE_string('profile', '', 'Steps to trace, first:last, as in 10:15.')


def main(argv):
    del argv
    traced = profile.parse(_PROFILE.value)
    checks.check(_CONFIG.value)  # before the workdir is made
    with workdir.alone(_WORKDIR.value):
        return _train(traced)


def _train(traced: tuple[int, int] | None) -> int:
    run = train_loop.build(_CONFIG.value, _WORKDIR.value)
    run_report.check(run)
    state = train_loop.train(run, run_report.while_training(run), traced)
    step = int(state.step)
    if not run.stopped and run.config.evaluation.samples:
        state = state.replace(params=None, opt_state=None)  # only the average is evaluated
        with run.goodput.phase('evaluation'):
            _evaluate(run, state)
    run.goodput.save(step, distributed.first())
    logging.info('%s', run.goodput.table())
    logging.info('Peak memory %.1f GB', metrics.peak_memory_gb())
    return exits.INTERRUPTED if run.stopped else exits.DONE


def _evaluate(run: train_loop.Run, state: State) -> None:
    """Whatever happens here, the training is done and saved."""
    try:
        table = run_report.at_end(run, state)
        if distributed.first():
            print(table)
    except Exception as error:
        distributed.abandon(error, exits.DONE)  # others may wait in a collective for this process
        logging.exception(
            'The evaluation failed; the training is complete and saved. Once the cause is mended, '
            'python -m rf_jax.evaluate --workdir=%s evaluates it',
            run.workdir,
        )


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py', required=['workdir'], several=True)
