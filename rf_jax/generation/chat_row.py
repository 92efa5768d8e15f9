"""One conversation while it is continued: what was said, and which of its tokens are cached.

All rows of a chat have the capacity of a training row, so that few programs are compiled. A token
keeps its place in the row for good; `arrays` says where each stands.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import arrays, conversation, fitting, image_ops, layout, patch_grid, spans
from rf_jax.data.batch import Batch
from rf_jax.data.conversation import Dropped, Image, Piece, Tokens
from rf_jax.data.messages import ImagePart, Message
from rf_jax.data.records import BadImage
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.models import representation
from rf_jax.runtime.errors import UserError

STREAMS = ('text', 'vision', 'representation')  # those that are cached
_LONG = 2**30  # tokens of a text: a row refuses what it cannot hold, and truncates nothing


@dataclass(frozen=True)
class Fitted:
    """An image at the size at which the model reads it, uint8 [h, w, 3]; `tokens` of a generated
    image [N, ...] in the order in which they are generated.
    """

    image: np.ndarray
    tokens: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[0], self.image.shape[1]


class ChatRow:
    """A conversation as pieces. `cached`: how many of its tokens of each stream are in the
    cache."""

    def __init__(self, config: ConfigDict, tokenizer, channels: int):
        self.config, self.tokenizer, self.channels = config, tokenizer, channels
        self.pool = spans.pool_of(config)
        self.pieces: list[Piece] = []
        self.cached = dict.fromkeys(STREAMS, 0)
        self._request = ''
        self._template = conversation.Template(tokenizer, _LONG, Counter())

    def say(self, messages: Sequence[Message]) -> None:
        """Adds messages, and what comes before the answer to them. Raises UserError for an image
        that cannot be read, and for a conversation longer than a training row.
        """
        fitted = [self._fitted(message, number) for number, message in enumerate(messages, 1)]
        turns = self._template.pieces(fitted, first=not self.pieces)
        self._add([*turns, *self._template.answer_begins()])
        said = [message.text for message in messages if message.role == 'user']
        self._request = said[-1] if said else self._request

    def begin(self, message: Message) -> None:
        """Adds the beginning of an answer, which goes on. Raises UserError as `say` does."""
        self._add(self._template.said(self._fitted(message, 1), _LONG)[0])

    def _add(self, pieces: Sequence[Piece]) -> None:
        """Adds pieces of messages. Raises UserError if there is no room."""
        new = []
        for piece in pieces:
            if isinstance(piece, Image) and piece.image.tokens is None:
                piece = Image(piece.image)  # without known tokens it can only be read
            new.append(piece)
        self.check(*new)
        self.pieces += new

    def _fitted(self, message: Message, number: int) -> Message:
        return Message(
            message.role, tuple(self._fitted_part(each, number) for each in message.parts)
        )

    def _fitted_part(self, part, number: int):
        if not isinstance(part, ImagePart):
            return part
        given = part.image
        if isinstance(given, GeneratedImage) and self._fits(given):
            return ImagePart(Fitted(given.image, self._in_order(given.tokens)))
        try:
            image = arrays.rgb(given, self.config.data.max_pixels)
        except BadImage as error:
            name = f' {given!s:.80}' if isinstance(given, str | Path) else ''
            raise UserError(f'message {number}, image{name}: {error}') from None
        size = fitting.image_size(*image.shape[:2], self.config)
        return ImagePart(Fitted(image_ops.resize(image, *size)))

    def _fits(self, image: GeneratedImage) -> bool:
        """Whether size and tokens can be of this model; an image of another one is only read."""
        height, width = image.image.shape[:2]
        patch = self.config.data.patch_size
        unit = patch_grid.unit(self.pool) * patch
        if height % unit or width % unit:
            return False
        if image.tokens is None or not self.pool:
            return True
        begin, side = representation.of(self.config).begin(self.config.model, 1), self.pool * patch
        return np.shape(image.tokens) == (height // side, width // side, *begin.shape[1:])

    def _in_order(self, tokens: np.ndarray | None) -> np.ndarray | None:
        """[rows, columns, ...] -> [N, ...]."""
        known = tokens is not None and self.pool
        return tokens.reshape(-1, *tokens.shape[2:]) if known else None

    def drawn(self, image: Fitted) -> None:
        """Adds an image that was generated after the <image> token."""
        _, piece, onwards = self._template.image(image)
        self.pieces += [piece, onwards]

    def wrote(self, tokens: Sequence[int]) -> None:
        """Adds tokens that were sampled; unless they end in <image> or <eos>, all are cached."""
        if tokens:
            self.pieces.append(Tokens(tuple(tokens), learned=True))

    def end_turn(self) -> None:
        """Ends an answer that was truncated, as in training each has an end; an <image> token
        without an image is taken back.
        """
        last = self.pieces[-1]
        if isinstance(last, Tokens) and last.ids[-1:] == (self.tokenizer.image,):
            self.pieces.pop()
            self.wrote(last.ids[:-1])
            self.cached['text'] = min(self.cached['text'], self.size()['text'])
        self.wrote([self.tokenizer.eos])

    def grid_of(self, image: Fitted) -> tuple[int, int]:
        """Height and width in patches."""
        patch = self.config.data.patch_size
        return image.image.shape[0] // patch, image.image.shape[1] // patch

    def _pixels_of(self, image: Fitted, pool: int) -> np.ndarray:
        return image_ops.patchify(image.image, self.config.data.patch_size, pool)

    def spans(
        self, pieces: Sequence[Piece], dropped: Dropped, given: int, pixels: bool = True
    ) -> list[layout.Span]:
        """The spans of pieces, of which the first `given` generated images are finished; `pixels`
        False: only where they stand.
        """
        keep = self.config.data.dropout_keeps_positions
        pixels_of = self._pixels_of if pixels else lambda image, pool: None
        return conversation.to_spans(
            pieces, self.grid_of, pixels_of, self.pool, dropped, keep, given
        )

    @property
    def images(self) -> list[Image]:
        """All images so far."""
        return [piece for piece in self.pieces if isinstance(piece, Image)]

    @property
    def generated(self) -> list[Fitted]:
        """The images so far that the assistant generated."""
        return [piece.image for piece in self.images if piece.generated]

    def size(self, *more: Piece) -> dict[str, int]:
        """What the row holds, with `more` pieces, by the names of `layout.SIZES`."""
        pieces = [*self.pieces, *more]
        finished = sum(isinstance(piece, Image) and piece.generated for piece in pieces)
        found = self.spans(pieces, conversation.NOTHING, finished, pixels=False)
        return dict(zip(layout.SIZES, layout.size(found).tolist()))

    def left(self) -> int:
        """Text tokens for which the row still has room."""
        return self.config.data.capacity.text - self.size()['text']

    def check(self, *more: Piece) -> None:
        """Raises UserError if the row cannot hold the conversation and `more` pieces."""
        for name, needed in self.size(*more).items():
            limit = self.config.data.capacity[name]
            if needed > limit:
                raise UserError(
                    f'the conversation needs {needed} {_WORDS[name]}; this model was trained with '
                    f'rows of at most data.capacity.{name}={limit}: start a new conversation'
                )

    def with_image(self, size: tuple[int, int]) -> list[Piece]:
        """The conversation with an image of `size` that the assistant is about to generate."""
        return [*self.pieces, *self._onwards(size)[:1]]

    def check_image(self, size: tuple[int, int]) -> None:
        """Raises UserError if the row cannot hold an image that the assistant generates."""
        self.check(*self._onwards(size))

    def _onwards(self, size: tuple[int, int]) -> list[Piece]:
        return self._template.image(Fitted(np.zeros((*size, 3), np.uint8)))[1:]

    def arrays(self, room: int, pixels: bool = True) -> Batch:
        """The arrays of the row, with room for text that follows; no pixels to generate. `pixels`
        False: without those to be read.
        """
        pieces = [*self.pieces, Tokens((self.tokenizer.pad,) * room)]
        row = layout.Row(chat_capacity(self.config), self.channels)
        row.add(self.spans(pieces, conversation.NOTHING, len(self.generated), pixels))
        return row.arrays

    def next_run(self) -> tuple[str, int]:
        """(stream, tokens) of the first tokens that are not cached and stand together in one
        stream; ('', 0) if all are cached.
        """
        seen = dict.fromkeys(STREAMS, 0)
        run, count = '', 0
        finished = len(self.generated)
        for span in self.spans(self.pieces, conversation.NOTHING, finished, pixels=False):
            size = dict(zip(layout.SIZES, layout.size([span]).tolist()))
            for stream in STREAMS:
                new = min(size[stream], seen[stream] + size[stream] - self.cached[stream])
                seen[stream] += size[stream]
                if new > 0 and run not in ('', stream):
                    return run, count
                if new > 0:
                    run, count = stream, count + new
        return run, count

    @property
    def request(self) -> str:
        """The text of the last message of the user."""
        return self._request

    def inputs(self, begin: np.ndarray) -> np.ndarray:
        """Inputs of the representation stream so far [R', ...]: the begin token [1, ...] and the
        tokens of each generated image in turn.
        """
        tokens = [image.tokens for image in self.generated if image.tokens is not None]
        return np.concatenate([begin[:0], *(part for each in tokens for part in (begin, each))])


_WORDS = {
    'text': 'text tokens',
    'vision': 'vision tokens',
    'representation': 'representation tokens',
    'vision_images': 'images',
    'pixels': 'pixel tokens',
    'pixel_images': 'images to generate at once',
}


def chat_capacity(config: ConfigDict) -> dict[str, int]:
    """Capacities of a row of a chat: those of training, without pixels."""
    return {name: config.data.capacity[name] for name in layout.SIZES} | {
        'pixels': 0, 'pixel_images': 0
    }  # fmt: skip
