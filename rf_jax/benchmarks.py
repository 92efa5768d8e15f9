"""Generate the images of a benchmark, in the folders that its scorer reads.

    python -m rf_jax.benchmarks --workdir=runs/joint --name=geneval \\
        --prompts=evaluation_metadata.jsonl --out=geneval_images

The same command goes on after an interruption: what exists is kept. The randomness of an image
depends on (seed, benchmark, prompt, number of the image).
"""

import time
from pathlib import Path

from absl import flags, logging

from rf_jax.evaluation import benchmarks
from rf_jax.evaluation.benchmarks import BENCHMARKS
from rf_jax.generation import inputs
from rf_jax.generation.sampler import ROWS, Sampler
from rf_jax.runtime import cli, workdir
from rf_jax.runtime.errors import UserError, require
from rf_jax.runtime.rng import fold

_WORKDIR = flags.DEFINE(cli.PATH, 'workdir', None, 'Folder of the run.')
_NAME = flags.DEFINE_enum('name', None, list(BENCHMARKS), 'Benchmark; folder: one prompt per line.')
_PROMPTS = flags.DEFINE(cli.PATH, 'prompts', None, 'File or folder of prompts as it is shipped.')
_OUT = flags.DEFINE(cli.PATH, 'out', None, 'Folder of the images.')
_MODEL = flags.DEFINE_string('model', '', 'Name of the model in paths; that of the workdir.')
_SIZE = flags.DEFINE_string('size', '', 'HEIGHTxWIDTH in pixels; the training size if not given.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other images.', 0)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)


def main(argv):
    del argv
    benchmark, out = BENCHMARKS[_NAME.value], Path(_OUT.value)
    prompts = benchmarks.read(_NAME.value, Path(_PROMPTS.value))
    model = _MODEL.value or Path(_WORKDIR.value).absolute().name
    workdir.check_writable(out, flag='out')
    for path, text in benchmark.beside(prompts, model).items():
        benchmarks.replace(out / path, text.encode())
    todo = benchmarks.missing(benchmark, prompts, out, model)
    logging.info('%d of %d files are missing', len(todo), len(prompts) * benchmark.files)
    if todo:
        _generate(benchmark, prompts, todo, out, model)
    left = benchmarks.missing(benchmark, prompts, out, model)
    require(not left, f'{len(left)} images are missing in {out}: run the same command again')
    print(f'{len(prompts)} prompts: all images are in {out}')


def _generate(benchmark, prompts, todo, out: Path, model: str) -> None:
    sampler = Sampler.load(_WORKDIR.value, _STEP.value)
    size = _size(sampler)
    each = benchmark.images if benchmark.grid else 1  # images of a file
    at_once, began = max(1, ROWS // each), time.monotonic()
    for start in range(0, len(todo), at_once):
        chunk = todo[start : start + at_once]
        wanted = [(i, n + k) for i, n in chunk for k in range(each)]
        images = sampler.generate(
            [prompts[i].text for i, _ in wanted],
            fold(_SEED.value, _NAME.value) % 2**31,
            size,
            # The same text under two numbers gives two images.
            number=[i * benchmark.images + n for i, n in wanted],
        )
        for at, (i, n) in enumerate(chunk):
            own = [image.image for image in images[at * each : (at + 1) * each]]
            benchmarks.write(out / benchmark.path(prompts[i], n, model), own)
        done = start + len(chunk)
        left = (time.monotonic() - began) / done * (len(todo) - done)
        logging.info('%d of %d files | ETA %d:%02d', done, len(todo), left // 60, left % 60)


def _size(sampler: Sampler) -> tuple[int, int] | None:
    if not _SIZE.value:
        return None
    try:
        height, width = map(int, _SIZE.value.split('x'))
    except ValueError:
        raise UserError(f'--size={_SIZE.value}: expected HEIGHTxWIDTH, such as 512x512') from None
    inputs.check_size(sampler.config, height, width)
    return height, width


if __name__ == '__main__':
    cli.run(main, required=['workdir', 'name', 'prompts', 'out'])
