"""Generate the images of a benchmark, in the folders that its scorer reads.

    python -m rf_jax.benchmarks --workdir=runs/joint --name=geneval \\
        --prompts=evaluation_metadata.jsonl --out=geneval_images

The same command goes on after an interruption: what exists is kept. The randomness of an image
depends on (seed, benchmark, prompt, number of the image).
"""

from pathlib import Path

from absl import flags, logging

from rf_jax.evaluation import benchmarks, scoring
from rf_jax.evaluation.benchmarks import BENCHMARKS
from rf_jax.generation import inputs
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, model_flags, paths, workdir
from rf_jax.training import weight_sources
from rf_jax.training.weight_sources import Run

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_NAME = flags.DEFINE_enum('name', None, list(BENCHMARKS), 'Benchmark; folder: one prompt per line.')
_PROMPTS = flags.DEFINE(cli.PATH, 'prompts', None, 'File or folder of prompts as it is shipped.')
_OUT = flags.DEFINE(cli.PATH, 'out', None, 'Folder of the images.')
_MODEL = flags.DEFINE_string('model', '', 'Name of the model in paths; that of the workdir.')
_SIZE = flags.DEFINE_string('size', '', 'HEIGHTxWIDTH in pixels; the training size if not given.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other images.', 0)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    out = Path(_OUT.value)
    prompts = benchmarks.read(_NAME.value, Path(_PROMPTS.value))
    run = paths.absolute(paths.anywhere(_WORKDIR.value, '--workdir'))
    model = _MODEL.value or run.name
    workdir.check_writable(out, flag='out')
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    if not scoring.generates(sampler.config):
        logging.warning('This run did not train generation: its images mean nothing')
    size = inputs.parsed_size(_SIZE.value) if _SIZE.value else None
    if size:
        inputs.check_size(sampler.config, *size)
    weights = weight_sources.digest(Run, Run.files(run, sampler.step))
    benchmarks.generate(sampler, _NAME.value, prompts, out, model, _SEED.value, size, weights)
    print(f'{len(prompts)} prompts: all images are in {out}')


if __name__ == '__main__':
    cli.run(main, required=['workdir', 'name', 'prompts', 'out'])
