"""Evaluate a run again: `python -m rf_jax.evaluate --workdir=runs/emoji [--samples=200]`."""

from pathlib import Path

from absl import flags

from rf_jax.data import sources
from rf_jax.evaluation import identification, report
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import command
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.')
_SAMPLES = flags.DEFINE_integer('samples', 200, 'Captions drawn and pictures described.', 1)
_SEED = flags.DEFINE_integer('seed', 0, 'Which pictures, and the noise.')


def main(argv):
    del argv
    sampler = Sampler.load(_WORKDIR.value)
    with_pictures = [
        source
        for source in sources.build(sampler.config.data.sources, sampler.config.data.max_pixels)
        if sources.pictured(source)
    ]
    if not with_pictures:
        raise UserError(f'data.sources={sampler.config.data.sources!r} of the run has no pictures')
    result = identification.evaluate(sampler, with_pictures[0], _SAMPLES.value, _SEED.value)
    print(report.write(result, Path(_WORKDIR.value)))


if __name__ == '__main__':
    command.run(main, required=['workdir'])
