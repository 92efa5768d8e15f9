"""Talk to a model in the terminal: `python -m rf_jax.chat --workdir=runs/conversations`.

    > /image cat.png
    > What is this?
    > draw it in blue

`/image FILE` attaches an image to the next line, where it stays if that line is refused; `/image`
alone drops pending images. `/new` begins another conversation; `/quit`, an empty line or Ctrl-D
ends it. Ctrl-C stops an answer. Images of the model are saved, and their paths printed. With
--message the command says that one message and ends.
"""

import re

import numpy as np
from absl import flags, logging

from rf_jax.data import data_fields, image_ops
from rf_jax.data.messages import ImagePart, Message, TextPart
from rf_jax.generation import terminal
from rf_jax.generation.chat import Conversation
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import cli, model_flags, paths, workdir
from rf_jax.runtime.errors import UserError

_WORKDIR = flags.DEFINE(cli.ANY_PATH, 'workdir', None, 'Folder of the run.')
_IMAGE = flags.DEFINE_multi(
    cli.PATH,
    flags.ArgumentSerializer(),
    'image',
    [],
    'Image file of the first message; may be given several times.',
)
_MESSAGE = flags.DEFINE_string('message', '', 'The only message; interactive if not given.')
_OUT = flags.DEFINE(
    cli.ANY_PATH, 'out', None, 'Folder of the generated images; WORKDIR/chat if not given.'
)
_TEMPERATURE = flags.DEFINE(cli.Finite(0), 'temperature', 0.0, 'Of the text; 0: greedy.')
_TOP_P = flags.DEFINE(cli.Finite(0), 'top_p', 1.0, 'Keep tokens of so much probability.')
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 0, 'Text tokens per answer; 0: no limit.', 0)
_SEED = flags.DEFINE_integer('seed', 0, 'Another seed gives other images.', 0)
_STEP = flags.DEFINE_integer(
    'checkpoint', None, 'Step of the checkpoint; the newest by default.', 0
)
_PLACEMENT, _SAMPLING = model_flags.placement(), model_flags.sampling()


def main(argv):
    del argv
    sampler = Sampler.load(_WORKDIR.value, _STEP.value, **_PLACEMENT(), **_SAMPLING())
    if not data_fields.talks(sampler.config):
        logging.warning(
            'This run did not train conversations (data.tasks.conversation=0): it answers single '
            'questions at best'
        )
    out = paths.anywhere(_OUT.value or f'{_WORKDIR.value}/chat', '--out')
    workdir.check_writable(out, flag='out')
    most = sampler.config.data.max_pixels
    images = [terminal.read('--image=', name, most) for name in _IMAGE.value]
    talk = sampler.conversation()
    for line in [_MESSAGE.value] if _MESSAGE.value else terminal.lines():
        word, _, rest = line.partition(' ')
        if _MESSAGE.value or not re.fullmatch(r'/\w*', word):
            images = _answer(talk, line, images, out)
        elif word == '/new':
            talk = sampler.conversation()
        elif word == '/image' and not rest:
            images = []
        elif word == '/image':
            try:
                images.append(terminal.read('/image ', terminal.file_of(rest), most))
            except UserError as error:
                print(f'error: {error}')
        else:
            print(f'error: {line!r} is no command; known: /image FILE, /image, /new, /quit')


def _answer(
    talk: Conversation, line: str, images: list[np.ndarray], out: paths.AnyPath
) -> list[np.ndarray]:
    """Says one line and prints the answer as it comes; an error is printed, and nothing is said.
    Returns the images that are still pending.
    """
    message = Message('user', (*map(ImagePart, images), TextPart(line)))
    settings = {'temperature': _TEMPERATURE.value, 'top_p': _TOP_P.value, 'seed': _SEED.value,
                'max_tokens': _MAX_TOKENS.value}  # fmt: skip

    def save(image: np.ndarray) -> paths.AnyPath:
        return image_ops.save_new(out, 'image', image, {'request': line, 'seed': _SEED.value})

    pending = images
    try:
        parts = talk.stream(message, **settings)
        pending = []
        terminal.show(parts, save, stoppable=not _MESSAGE.value)
    except UserError as error:
        if _MESSAGE.value:
            raise
        kept = ' (its images stay attached to the next line)' if pending else ''
        print(f'error: {error}{kept}')
    return pending


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
