"""Messages in, messages out: `Sampler.chat` and `Sampler.conversation`."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from rf_jax.data import image_urls
from rf_jax.data import messages as forms
from rf_jax.data.messages import ImagePart, Message, TextPart
from rf_jax.generation import arguments
from rf_jax.generation.chat_answer import LENGTH, STOP, Answer, Said, Settings
from rf_jax.generation.chat_images import padded_count
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage, PartialImage
from rf_jax.runtime.errors import UserError, require

ROWS = 32  # conversations answered together

# What a streamed answer consists of; partial images only if they are asked for.
Delta = str | GeneratedImage | PartialImage


def parsed(given) -> tuple[Message, ...]:
    """Messages from any of the forms of `data.messages`. Raises UserError."""
    given = forms.user(given) if isinstance(given, str) else given
    try:
        found = forms.parse([given] if isinstance(given, Message | Mapping) else given)
        return tuple(forms.with_images(message, _opened) for message in found)
    except ValueError as error:
        raise UserError(str(error)) from None


def _opened(image):
    """What a URL names, as `data.arrays.as_rgb` takes it. Raises ValueError."""
    if not isinstance(image, str):
        return image
    data = image_urls.bytes_of(image)
    return image_urls.file_of(image) if data is None else data


def _images(name: str, value) -> bool:
    require(
        isinstance(value, bool | np.bool_),
        f'{name}={value!r:.60}: expected True or False, whether the answer may have images; those '
        'that are shown to the model are parts of a message',
    )
    return bool(value)


_CHECKED = {
    'temperature': arguments.number,
    'top_k': partial(arguments.integer, least=0),
    'top_p': partial(arguments.number, most=1.0),
    'seed': arguments.integer,
    'max_tokens': partial(arguments.integer, least=0),
    'size': arguments.pair,
    'images': _images,
    'partial_images': partial(arguments.integer, least=0),
}


def settings_of(sampler, options: Mapping) -> Settings:
    """Settings from keyword arguments, those of images as in `generate`; None changes nothing.
    Raises UserError.
    """
    images = {name: value for name, value in options.items() if name not in _CHECKED}
    own = {name: value for name, value in options.items() if name in _CHECKED and value is not None}
    settings = {name: _CHECKED[name](name, value) for name, value in own.items()}
    return Settings(**settings, sampling=sampler.options(**images))


class Reader:
    """Turns what a row says into text and images: text only once its characters are complete."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.parts: list[TextPart | ImagePart] = []
        self._tokens: list[int] = []
        self._given = ''

    def read(self, said: Said) -> Iterator[Delta]:
        """The new text or image, or what can be seen of one."""
        if said.partial is not None:
            yield said.partial
        self._tokens += said.tokens
        text, ends = self.tokenizer.decode(self._tokens), said.image is not None or said.ended
        if not ends and text.endswith('\N{REPLACEMENT CHARACTER}'):
            return
        new, self._given = text[len(self._given) :], text
        # Noted before it is yielded: the caller may read no further.
        if ends:
            if text.strip():
                self.parts.append(TextPart(text.strip()))
            self._tokens, self._given = [], ''
        if said.image is not None:
            self.parts.append(ImagePart(said.image))
        if new:
            yield new
        if said.image is not None:
            yield said.image


class Trimmed:
    """Text as it comes, without white space around it."""

    def __init__(self):
        self._begun, self._held = False, ''

    def read(self, text: str) -> str:
        """What may be shown, now that `text` has come; white space only once more follows."""
        text = self._held + text
        text = text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._begun, self._held = self._begun or bool(shown), text[len(shown) :]
        return shown


class Conversation:
    """A conversation that is continued turn by turn; what was said stays in the cache.

    `messages`: all so far; the assistant's once its stream has ended, or with the next turn.
    """

    def __init__(self, sampler):
        self._sampler = sampler
        self._row = sampler.chat_row()
        self._engine = sampler.chat_engine(1)
        self._reading: Reader | None = None  # of an answer that is not in `messages` yet
        self.messages: tuple[Message, ...] = ()

    def send(self, given, **settings) -> Message:
        """Says a message or several and gives the assistant's; `settings` as in `Sampler.chat`."""
        for _ in self.stream(given, **settings):
            pass
        return self.messages[-1]

    def stream(self, given, **settings) -> Iterator[Delta]:
        """The same, part by part: pieces of text, and images; with partial_images=3 also what can
        be seen of an image while it is generated. Closing the stream early ends the answer there,
        and so does the next turn. Raises UserError.
        """
        said = parsed(given)
        how = settings_of(self._sampler, settings)
        last, before = self._engine.answers[0], list(self._row.pieces)
        try:
            if last and last.ended != STOP:  # truncated, or its stream was left
                self._row.end_turn()
            self._row.say(said)
            self._engine.start(0, self._row, how)
        except UserError:
            self._row.pieces = before
            raise
        self._note(self._reading)
        self.messages += said
        self._reading = Reader(self._sampler.tokenizer)
        return self._answer(self._reading, self._engine.answers[0])

    def _answer(self, reader: Reader, answer: Answer) -> Iterator[Delta]:
        shown = Trimmed()
        try:
            while self._reading is reader and not answer.ended:  # not once the next turn has begun
                for part in reader.read(self._engine.step()[0]):
                    if isinstance(part, GeneratedImage):
                        shown = Trimmed()
                    if part := shown.read(part) if isinstance(part, str) else part:
                        yield part
        finally:
            self._note(reader)

    def _note(self, reader: Reader | None) -> None:
        """Adds what was read of an answer to `messages`, once."""
        if reader is None or self._reading is not reader:
            return
        list(reader.read(Said(ended=LENGTH)))  # nobody reads the rest
        self.messages += (Message('assistant', tuple(reader.parts)),)
        self._reading = None


def answers(sampler, conversations: Sequence, settings: Mapping) -> list[Message]:
    """The assistant's next message of each conversation; ROWS run together. Raises UserError."""
    how = settings_of(sampler, settings)
    rows: list[ChatRow] = []
    for conversation in conversations:
        rows.append(sampler.chat_row())
        rows[-1].say(parsed(conversation))
    return continued(sampler, rows, [how] * len(rows))


def continued(
    sampler, rows: Sequence[ChatRow], hows: Sequence[Settings], draw: bool = False
) -> list[Message]:
    """What is said next in each row; `draw`: one image and no text. Raises UserError."""
    found: list[Message] = []
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        engine = sampler.chat_engine(padded_count(len(some), ROWS))
        readers = [Reader(sampler.tokenizer) for _ in some]
        for number, row in enumerate(some):
            engine.start(number, row, hows[start + number], draw)
        while said := engine.step():
            for number, each in said.items():
                list(readers[number].read(each))
        found += [Message('assistant', tuple(reader.parts)) for reader in readers]
    return found
