r"""Reinforce a trained run by GRPO.

python -m rf_jax.reinforce --config=configs/posttraining/grpo.py --workdir=runs/reinforced \
    --config.initialise_from=runs/pixel_rf

The same command resumes. A reward of your own: `--reward=my_rewards.py:brightness`, a function of
(prompt, source, sample), see rf_jax/posttraining/rewards.py.
"""

from absl import flags
from ml_collections import config_flags

from rf_jax.evaluation import run_report
from rf_jax.posttraining import collector, own_rewards, policy, reference
from rf_jax.runtime import cli, workdir
from rf_jax.training import checks, train_loop

_CONFIG = config_flags.DEFINE_config_file('config', None, 'What to reinforce.')
_WORKDIR = flags.DEFINE(
    cli.ANY_PATH, 'workdir', None, 'Folder of the run; an existing run is resumed.'
)
_REWARD = flags.DEFINE_multi_string(
    'reward',
    [],
    'A function of your own, as my_rewards.py:brightness; its weight is in grpo.rewards, or 1.',
)


def main(argv):
    del argv
    config = _CONFIG.value
    checks.check(config)
    collector.check(config)
    more = own_rewards.load_all(_REWARD.value)
    collector.name_rewards(config, more)
    with workdir.training_lock(_WORKDIR.value):
        run = train_loop.build(config, _WORKDIR.value, objective_of=policy.objective)
        run_report.check(run)
        while_training = run_report.while_training(run)
        # Without names for the state and the feed, so that their memory is free for the evaluation.
        return run_report.finish(
            run,
            train_loop.train(
                run,
                while_training,
                feed=collector.Collector(run, reference.load(run), more),
                unit=config.grpo.updates,
            ),
        )


if __name__ == '__main__':
    cli.run(main, config='configs/posttraining/grpo.py', required=['workdir'], multiprocess=True)
