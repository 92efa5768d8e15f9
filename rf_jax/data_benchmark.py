"""How fast a host makes batches: `python -m rf_jax.data_benchmark [--config=configs/emoji.py]`.

Reads, decodes and packs examples of the config's sources on one thread, and prints for each stage
the time a sample, which of them is the bottleneck, and the seconds of host work a step on a pod:

python -m rf_jax.data_benchmark --config=configs/paper.py:joint --hosts=128 --step_seconds=2.5 \\
    --config.data.sources=prepared:/path/to/set

`--step_seconds` is what `rf_jax.compile_check` predicts for a step on that pod.
"""

from absl import flags
from ml_collections import config_flags

from rf_jax.planning import data_rates
from rf_jax.runtime import cli
from rf_jax.training import bounds, checks

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Whose data to read; configs/emoji.py by default.'
)
_HOSTS = flags.DEFINE_integer('hosts', 1, 'Hosts of the pod, each a process.', 1)
_SAMPLES = flags.DEFINE_integer('samples', 2000, 'Samples to measure, at least.', 1)
_STEP_SECONDS = flags.DEFINE(
    cli.Finite(0), 'step_seconds', 0.0, 'Seconds of a step on the pod; 0: unknown.'
)


def main(argv):
    del argv
    config = _CONFIG.value
    bounds.check(checks.flatten(config.to_dict()))
    batches = data_rates.batches_of(config, _HOSTS.value)
    rates = data_rates.measure(batches, _SAMPLES.value)
    print('\n'.join(data_rates.lines(rates, _HOSTS.value, _STEP_SECONDS.value)))


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py')
