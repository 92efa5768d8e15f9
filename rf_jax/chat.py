"""Talk to a model in the terminal: `python -m rf_jax.chat --workdir=runs/conversations`.

    > /image cat.png
    > What is this?
    > draw it in blue

`/image FILE` shows the model an image, with the next line; `/new` begins another conversation; an
empty line or Ctrl-D ends it. Images of the model are saved, and their paths printed. With --message
the command says that one message and ends.
"""

import sys
from collections.abc import Iterator

from absl import flags, logging

from rf_jax.data import data_fields, image_ops
from rf_jax.data.messages import ImagePart, Message, TextPart
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
    talk, images = sampler.conversation(), list(_IMAGE.value)
    for line in [_MESSAGE.value] if _MESSAGE.value else _lines():
        word, _, rest = line.partition(' ')
        if word == '/image':
            images.append(rest.strip())
        elif word == '/new':
            talk, images = sampler.conversation(), []
        else:
            _answer(talk, line, images, out)
            images = []


def _lines() -> Iterator[str]:
    """What the user types, up to an empty line."""
    prompt = '> ' if sys.stdin.isatty() else ''
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line:
            return
        yield line


def _answer(talk: Conversation, line: str, images: list[str], out: paths.AnyPath) -> None:
    """Says one line and prints the answer as it comes; an error is printed, and nothing is said."""
    message = Message('user', (*map(ImagePart, images), TextPart(line)))
    settings = {'temperature': _TEMPERATURE.value, 'top_p': _TOP_P.value, 'seed': _SEED.value}
    try:
        for part in talk.stream(message, max_tokens=_MAX_TOKENS.value, **settings):
            if isinstance(part, str):
                print(part, end='', flush=True)
            else:
                made_by = {'request': line, 'seed': _SEED.value}
                file = image_ops.save_new(out, 'image', part.image, made_by)
                print(f'[{file}]', end=' ', flush=True)
        print()
    except UserError as error:
        if _MESSAGE.value:
            raise
        print(f'error: {error}')


if __name__ == '__main__':
    cli.run(main, required=['workdir'])
