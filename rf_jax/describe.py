"""Captions and answers: `python -m rf_jax.describe --workdir=runs/emoji --image=cat.png`.

With --question the model answers it about every image.
"""

from absl import flags, logging

from rf_jax.data import image_ops
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, model_flags
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_IMAGE = flags.DEFINE_multi(
    cli.PATH,
    flags.ArgumentSerializer(),
    'image',
    [],
    'Image file; may be given several times.',
)
_QUESTION = flags.DEFINE_string(
    'question', '', 'Question about every image; a caption if not given.'
)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT = model_flags.placement()


def main(argv):
    del argv
    if not _IMAGE.value:
        raise UserError('no image: give --image=FILE')
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT())
    share = sampler.config.data.tasks.get('image_to_text', 0)
    if not share:
        logging.warning(
            'This run did not train captioning (data.tasks.image_to_text=%s): its answers mean '
            'nothing unless the run of initialise_from did',
            share,
        )
    readable, images, unreadable = [], [], []
    for path in _IMAGE.value:
        try:
            images.append(image_ops.read_rgb(path, sampler.config.data.max_pixels))
            readable.append(path)
        except image_ops.BadImage as error:
            unreadable.append(f'--image={path}: {error}')
    answers = sampler.answer(images, _QUESTION.value)
    for path, answer in zip(readable, answers):
        print(f'{path}: {answer}')
    if unreadable:
        raise UserError('; '.join(unreadable))


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
