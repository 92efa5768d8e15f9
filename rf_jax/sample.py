"""Draw: `python -m rf_jax.sample --workdir=runs/emoji --prompt='red apple'`.

Each PNG holds its prompt, seed, checkpoint and options as text fields; files that are already in
the folder stay.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags, logging

from rf_jax.data import images, png, text_files
from rf_jax.evaluation import scoring
from rf_jax.generation import image_sampling
from rf_jax.generation.sampler import Request, Sampler
from rf_jax.runtime import cli, workdir
from rf_jax.runtime.errors import UserError
from rf_jax.training import flow

_WORKDIR = flags.DEFINE(cli.PATH, 'workdir', None, 'Folder of the run.')
_PROMPT = flags.DEFINE_multi_string('prompt', [], 'What to draw; may be given several times.')
_PROMPTS = flags.DEFINE(cli.PATH, 'prompts', None, 'A text file with one prompt a line.')
_OUT = flags.DEFINE(cli.PATH, 'out', None, 'Folder of the pictures; WORKDIR/drawn if not given.')
_NUMBER = flags.DEFINE_integer('number', 4, 'Pictures per prompt.', lower_bound=1)
_SIZE = flags.DEFINE_string('size', None, 'HEIGHTxWIDTH in pixels; the training size if not given.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed draws other pictures.', 0)
_STEPS = flags.DEFINE_integer('steps', None, 'Flow steps.', lower_bound=1)
_METHOD = flags.DEFINE_enum('method', None, list(flow.METHODS), 'Flow sampler.')
_TOP_K = flags.DEFINE_integer('top_k', None, 'Keep the k likeliest tokens; 0: all.', 0)
_TEMPERATURE = flags.DEFINE(
    cli.Finite(0), 'temperature', None, 'Of the representation tokens; 0: greedy.'
)
_GUIDANCE_REPRESENTATION = flags.DEFINE(
    cli.Finite(0),
    'guidance_representation',
    None,
    'Guidance of the representation tokens; 1: off.',
)
_GUIDANCE_PIXELS = flags.DEFINE(
    cli.Finite(0), 'guidance_pixels', None, 'Guidance of the pixels; 1: off.'
)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)


def main(argv):
    del argv
    prompts = _prompts()
    sampler = Sampler.load(_WORKDIR.value, _STEP.value)
    config = sampler.config
    if not scoring.draws(config):
        logging.warning(
            'This run did not learn to draw (data.tasks.text_to_image=%s, losses.flow=%s): unless '
            'initialise_from did, its pictures mean nothing',
            config.data.tasks.get('text_to_image', 0),
            config.losses.flow,
        )
    options = sampler.options(
        steps=_STEPS.value,
        method=_METHOD.value,
        top_k=_TOP_K.value,
        temperature=_TEMPERATURE.value,
        guidance_representation=_GUIDANCE_REPRESENTATION.value,
        guidance_pixels=_GUIDANCE_PIXELS.value,
    )
    requests = [
        sampler.request(prompt, _SEED.value, number, _size())
        for prompt in prompts
        for number in range(_NUMBER.value)
    ]
    out = Path(_OUT.value or Path(_WORKDIR.value) / 'drawn')
    workdir.check_writable(out, flag='out')
    began = time.monotonic()
    drawn = sampler.draw(requests, options)
    grid = _save(out, requests, drawn, _provenance(sampler, options))
    print(f'{len(drawn)} pictures in {time.monotonic() - began:.1f} s: {grid}')


def _provenance(sampler: Sampler, options: image_sampling.Options) -> dict[str, object]:
    """What the pictures of this command follow from, beside prompt, number and size."""
    return {
        'seed': _SEED.value,
        'workdir': Path(_WORKDIR.value).resolve(),
        'checkpoint': sampler.step,
        **dataclasses.asdict(options),
    }


def _save(out: Path, requests: Sequence[Request], pictures, made_by: dict) -> Path:
    """Writes every picture and a grid of all into `out`, beside what is there; the grid's path."""
    for i, (request, picture) in enumerate(zip(requests, pictures)):
        index, number = divmod(i, _NUMBER.value)
        text = {'prompt': request.prompt, 'number': number, **made_by}
        png.write_new(out, _stem(request.prompt, index, number), picture, text)
    columns = _NUMBER.value if _NUMBER.value > 1 else min(8, len(requests))
    prompts = [request.prompt for request in requests]
    sheet = images.grid(pictures, columns, prompts)
    return png.write_new(out, 'grid', sheet, {'prompts': '\n'.join(prompts), **made_by})


def _prompts() -> list[str]:
    prompts = list(_PROMPT.value)
    if _PROMPTS.value:
        try:
            prompts += text_files.lines(_PROMPTS.value)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'--prompts={_PROMPTS.value}: {error}') from None
    if not prompts:
        raise UserError("nothing to draw: give --prompt='red apple' or --prompts=file")
    return prompts


def _size() -> tuple[int, int] | None:
    if not _SIZE.value:
        return None
    match = re.fullmatch(r'(\d+)x(\d+)', _SIZE.value)
    if not match:
        raise UserError(f'--size={_SIZE.value}: expected HEIGHTxWIDTH, for example 64x96')
    return int(match[1]), int(match[2])


def _stem(prompt: str, index: int, number: int) -> str:
    """File name of a picture, without its ending."""
    slug = re.sub(r'[^\w]+', '-', prompt.lower()).strip('-')[:60] or 'empty'
    return f'{index:03d}-{slug}-seed{_SEED.value}-{number}'


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
