"""Generates images: `python -m rf_jax.sample --workdir=runs/emoji --prompt='red apple'`.

Each PNG is saved as soon as it is generated, with its prompt, seed, checkpoint and options as text
fields. Existing files are kept.

Of runs that are trained so, --mode=think writes a text before each image, and --mode=redraw looks
at each image, writes what is wrong with it and generates it again; the prompt is given with the
text.
"""

import dataclasses
import re
import time
from collections.abc import Iterable, Iterator, Sequence

from absl import flags, logging

from rf_jax.data import contact_sheet, image_ops
from rf_jax.evaluation import scoring
from rf_jax.generation import image_sampling, inputs, thinking
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, metrics, model_flags, paths, workdir
from rf_jax.runtime.errors import UserError
from rf_jax.training import flow

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_PROMPT = flags.DEFINE_multi_string(
    'prompt', [], 'Text to generate images of; may be given several times.'
)
_PROMPTS = flags.DEFINE(cli.PATH, 'prompts', None, 'A text file with one prompt per line.')
_OUT = flags.DEFINE(cli.ANY_PATH, 'out', None, 'Folder of the images; WORKDIR/drawn if not given.')
_MODE = flags.DEFINE_enum(
    'mode', 'direct', ['direct', 'think', 'redraw'], 'What is done beside generating the image.'
)
_NUMBER = flags.DEFINE_integer('number', 4, 'Images per prompt.', lower_bound=1)
_SIZE = flags.DEFINE_string('size', None, 'HEIGHTxWIDTH in pixels; the training size if not given.')
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other images.', 0)
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
_PLACEMENT = model_flags.placement()

LOG_SECONDS = 10


def main(argv):
    del argv
    prompts = _prompts()
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT())
    config = sampler.config
    if not scoring.generates(config):
        logging.warning(
            'This run did not train generation (data.tasks.text_to_image=%s, losses.flow=%s): its '
            'images mean nothing unless the run of initialise_from did',
            config.data.tasks.get('text_to_image', 0),
            config.losses.flow,
        )
    changes = {
        'steps': _STEPS.value,
        'method': _METHOD.value,
        'top_k': _TOP_K.value,
        'temperature': _TEMPERATURE.value,
        'guidance_representation': _GUIDANCE_REPRESENTATION.value,
        'guidance_pixels': _GUIDANCE_PIXELS.value,
    }
    options = dataclasses.asdict(sampler.options(**changes))
    out = paths.anywhere(_OUT.value or f'{_WORKDIR.value}/drawn', '--out')
    workdir.check_writable(out, flag='out')
    began = time.monotonic()
    count, made_by = len(prompts) * _NUMBER.value, _provenance(sampler, options)
    generated = []
    for image in _with_progress(_generated(sampler, prompts, changes), count):
        _save(out, image, len(generated), made_by)
        generated.append(image)
    grid = _save_grid(out, generated, made_by)
    print(f'{count} images in {time.monotonic() - began:.1f} s: {grid}')


def _with_progress(images: Iterable[GeneratedImage], count: int) -> Iterator[GeneratedImage]:
    """The same, with a line in the log now and then."""
    first = logged = None  # the first batch compiles
    for done, image in enumerate(images, 1):
        yield image
        now = time.monotonic()
        first = first or (done, now)
        if done < count and now - (logged or first[1]) >= LOG_SECONDS:
            logged, each = now, (now - first[1]) / (done - first[0])
            left = metrics.duration(each * (count - done))
            logging.info('%d of %d images | ETA %s', done, count, left)


def _generated(sampler: Sampler, prompts: Sequence[str], changes: dict) -> Iterator[GeneratedImage]:
    """--number images of each prompt in turn, by --mode."""
    numbers = [*range(_NUMBER.value)] * len(prompts)
    repeated = [prompt for prompt in prompts for _ in range(_NUMBER.value)]
    size = inputs.parsed_size(_SIZE.value) if _SIZE.value else None
    if _MODE.value == 'direct':
        yield from sampler.generate_each(repeated, _SEED.value, size, numbers, **changes)
        return
    write = thinking.think if _MODE.value == 'think' else thinking.redraw
    # As arguments, temperature and top_k would be those of the text.
    given = {name: value for name, value in changes.items() if value is not None}
    image_sampling.change(sampler.config, given)
    found = write(sampler, repeated, seed=_SEED.value, size=size)
    for prompt, number, (*_, text, image) in zip(repeated, numbers, found):
        if image is None:
            raise UserError(
                f'no image follows what the run writes about {prompt!r}, {text!r}: it was not '
                'trained to think (configs/posttraining/think.py); give --mode=direct'
            )
        said = f'{prompt} -> {text}'
        yield dataclasses.replace(image, prompt=said, number=number)


def _provenance(sampler: Sampler, options: dict) -> dict[str, object]:
    """What the images of this command depend on, besides prompt, number and size."""
    return {
        'seed': _SEED.value,
        'workdir': paths.absolute(paths.anywhere(_WORKDIR.value, '--workdir')),
        'checkpoint': sampler.step,
        **options,
    }


def _save(out: paths.AnyPath, image: GeneratedImage, index: int, made_by: dict) -> None:
    """Writes image `index` of the command to `out`, overwrites nothing."""
    text = {'prompt': image.prompt, 'number': image.number, **made_by}
    stem = _stem(image.prompt, index // _NUMBER.value, image.number)
    image_ops.save_new(out, stem, image.image, text)


def _save_grid(
    out: paths.AnyPath, generated: Sequence[GeneratedImage], made_by: dict
) -> paths.AnyPath:
    """Writes a grid of all images; its path."""
    columns = _NUMBER.value if _NUMBER.value > 1 else min(8, len(generated))
    prompts = [each.prompt for each in generated]
    sheet = contact_sheet.grid([each.image for each in generated], columns, prompts)
    return image_ops.save_new(out, 'grid', sheet, {'prompts': '\n'.join(prompts), **made_by})


def _prompts() -> list[str]:
    prompts = list(_PROMPT.value)
    if _PROMPTS.value:
        try:
            prompts += paths.text_lines(_PROMPTS.value)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f'--prompts={_PROMPTS.value}: {error}') from None
    if not prompts:
        raise UserError("no prompt: give --prompt='red apple' or --prompts=file")
    return prompts


def _stem(prompt: str, index: int, number: int) -> str:
    """File name of an image, without its ending."""
    slug = re.sub(r'[^\w]+', '-', prompt.lower()).strip('-')[:60]
    slug = slug.encode()[:180].decode(errors='ignore') or 'empty'  # a name has at most 255 bytes
    return f'{index:03d}-{slug}-seed{_SEED.value}-{number}'


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
