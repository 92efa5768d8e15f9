"""Messages to spans: what is read, what is learned, and how a generated image stands in between.

The tokenizer's chat format tells turns apart. In the plain format:

    user       <bos> text <answer>
    assistant  text <eos>

An image of the user becomes a Vision span where it stands; those before all text of a turn come
before its first token. An image of the assistant begins with the token <image>, which the model
predicts where it decides to generate one. Then come its representation, its pixels, its encoder
features, which all later tokens see, and <answer>, after which the assistant continues. A
conversation of one question is `spans.question_answer_span`.

The loss is on the assistant's tokens alone: text, <image> and <eos>. A draft of the assistant
is laid out like any image that it generates, so that later tokens see what they see at inference,
but there is no loss on it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rf_jax.data import layout, spans
from rf_jax.data.messages import DraftPart, ImagePart, Message, TextPart
from rf_jax.data.patch_grid import unit

Grid = tuple[int, int]  # height and width in patches


@dataclass(frozen=True)
class Tokens:
    """Token ids; `learned`: the assistant wrote them."""

    ids: tuple[int, ...]
    learned: bool = False


@dataclass(frozen=True)
class Image:
    """An image that is read or, if `generated`, generated and then read; `learned`: there is a loss
    on it if it is generated.
    """

    image: Any  # as in ImagePart
    generated: bool = False
    learned: bool = True


Piece = Tokens | Image


class Template:
    """Turns of a conversation as pieces, in the chat format of the tokenizer.

    A turn of the user has at most `spans.question_room` tokens of text, an answer as many as are
    left of `max_text`; longer text is truncated and counted, and the end of a truncated answer is
    not learned.
    """

    def __init__(self, tokenizer, max_text: int, counts: Counter):
        self.tokenizer, self.max_text, self.counts = tokenizer, max_text, counts
        self._chat = tokenizer.chat
        self._room = spans.question_room(tokenizer, max_text)

    def pieces(self, messages: Sequence[Message], first: bool = True) -> list[Piece]:
        """All turns in order. `first`: nothing was said before them."""
        found: list[Piece] = []
        asked = 0  # text tokens of the turn that is answered
        for message in messages:
            found += [] if first else self._tokens(self._chat.between)
            first = False
            if message.role == 'assistant':
                found += self._assistant(message, self.max_text - asked)
                continue
            turn = self._system(message) if message.role == 'system' else self._user(message)
            asked = sum(len(piece.ids) for piece in turn if isinstance(piece, Tokens))
            found += turn
        return found

    def answer_begins(self) -> list[Piece]:
        """What stands between a turn and the answer to it."""
        return self._tokens(self._chat.answer_begins)

    def _tokens(self, ids: Sequence[int]) -> list[Piece]:
        return [Tokens(tuple(ids))] if ids else []

    def _system(self, message: Message) -> list[Piece]:
        ids, _ = self._encode(message.text, self._room)
        return [Tokens((*self._chat.before['system'], *ids, *self._chat.after['system']))]

    def _user(self, message: Message) -> list[Piece]:
        parts = list(message.parts)
        found: list[Piece] = []
        while parts and isinstance(parts[0], ImagePart):
            found.append(Image(parts.pop(0).image))
        found.append(Tokens(self._chat.before['user']))
        left = self._room
        for part in parts:
            if isinstance(part, TextPart):
                ids, _ = self._encode(part.text, left)
                left -= len(ids)
                found.append(Tokens(ids))
            else:
                found.append(Image(part.image))
        return [*found, Tokens(self._chat.after['user'])]

    def _assistant(self, message: Message, room: int) -> list[Piece]:
        before, after = self._tokens(self._chat.before['assistant']), self._chat.after['assistant']
        room -= len(self._chat.answer_begins) + len(after)
        said, whole = self.said(message, room)
        return [*before, *said, Tokens(after, learned=whole)]

    def said(self, message: Message, room: int) -> tuple[list[Piece], bool]:
        """(what the assistant says in a turn, in at most `room` tokens of text, whether that is all
        of it).
        """
        found: list[Piece] = []
        left, whole = room, True
        for part in message.parts:
            if isinstance(part, TextPart):
                ids, all_of_it = self._encode(part.text, left)
                whole &= all_of_it
                left -= len(ids)
                found.append(Tokens(ids, learned=True))
            else:
                found += self.image(part.image, not isinstance(part, DraftPart))
        return found, whole

    def image(self, image: Any, learned: bool = True) -> list[Piece]:
        """An image that the assistant generates, and the token after which it continues."""
        return [
            Tokens((self.tokenizer.image,), learned=True),
            Image(image, generated=True, learned=learned),
            Tokens((self.tokenizer.answer,)),
        ]

    def _encode(self, text: str, room: int) -> tuple[tuple[int, ...], bool]:
        """(the first `room` tokens, whether these are all)."""
        ids = self.tokenizer.encode(text)
        if len(ids) > room:
            self.counts['text_truncated'] += 1
        return tuple(ids[: max(room, 0)]), len(ids) <= room


def learned_images(messages: Sequence[Message]) -> list[int]:
    """Of the assistant's images, counted from 0, those that are not drafts."""
    parts = [part for message in messages if message.role == 'assistant' for part in message.parts]
    images = [part for part in parts if isinstance(part, ImagePart)]
    return [i for i, part in enumerate(images) if not isinstance(part, DraftPart)]


def without_last_turn(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation up to the assistant's message before the last; () if there is none."""
    ends = [i for i, message in enumerate(messages) if message.role == 'assistant']
    return tuple(messages[: ends[-2] + 1]) if len(ends) > 1 else ()


@dataclass(frozen=True)
class Dropped:
    """Conditions that are left out of a conversation, so that guidance can do without them.

    `text`: all text, and with it the loss on text. `images`: every image but generated image
    number `kept`. `representation`: pixels do not attend to the representation of their image.
    """

    text: bool = False
    images: bool = False
    representation: bool = False
    kept: int = 0


NOTHING = Dropped()


def to_spans(
    pieces: Sequence[Piece],
    grid_of: Callable[[Any], Grid],
    pixels_of: Callable[[Any, int], np.ndarray | None],
    pool: int,
    dropped: Dropped = NOTHING,
    keep_positions: bool = False,
    given: int = 0,
) -> list[layout.Span]:
    """The spans of a conversation, or of its beginning.

    `grid_of(image)` gives the patches of an image; `pixels_of(image, pool)` its pixels, ordered by
    groups of `pool` patches a side, or None for the layout alone. `pool` as `spans.pool_of` gives
    it. `keep_positions`: what is dropped keeps its positions. The first `given` generated images
    are finished: their tokens are known, and they have no pixels.
    """
    found: list[layout.Span] = []
    generated = 0
    for number, piece in enumerate(_merged(pieces)):
        if isinstance(piece, layout.Text):
            if dropped.text:
                piece = layout.Skip(len(piece.tokens))
            elif dropped.images:  # it may speak of them
                piece = layout.Text(piece.tokens)
            found.append(piece)
            continue
        grid = grid_of(piece.image)
        kept = not dropped.images or (piece.generated and generated == dropped.kept)
        finished = generated < given
        generated += piece.generated
        if not kept:
            found.append(layout.Skip(_order(piece, grid, pool)))
            continue
        if piece.generated and finished:
            if pool:
                found.append(layout.Representation(*grid, number, pool, given=True))
        elif piece.generated:
            found += _generated(piece, grid, number, pixels_of, pool, dropped.representation)
            if dropped.images:  # nothing after it is learned
                break
        found.append(layout.Vision(*grid, pixels_of(piece.image, 2), number))
    if not keep_positions:
        found = [span for span in found if not isinstance(span, layout.Skip)]
    return found


def _generated(piece: Image, grid: Grid, number: int, pixels_of, pool: int, blind: bool):
    """Representation and pixels; those of a draft are there for its tokens, and have no loss."""
    pixels = pixels_of(piece.image, unit(pool))
    if not pool:
        return [layout.Pixels(*grid, pixels, number)] if piece.learned else []
    learned = piece.learned
    return [
        layout.Representation(*grid, number, pool, learned=learned),
        layout.Pixels(*grid, pixels, number, not blind, pool, learned),
    ]


def _order(piece: Image, grid: Grid, pool: int) -> int:
    """Places in the order that an image takes."""
    tokens = grid[0] * grid[1] // pool**2 + 1 if piece.generated and pool else 0
    return tokens + 1


def _merged(pieces: Sequence[Piece]) -> list[layout.Text | Image]:
    """Adjacent tokens in one Text, each with the token that it must predict."""
    found: list[layout.Text | Image] = []
    ids: list[int] = []
    learned: list[bool] = []

    def flush() -> None:
        if ids:
            after = zip(ids[1:], learned[1:])
            targets = [token if right else -1 for token, right in after] + [-1]
            found.append(layout.Text(tuple(ids), tuple(targets)))
        ids.clear()
        learned.clear()

    for piece in pieces:
        if isinstance(piece, Image):
            flush()
            found.append(piece)
        else:
            ids += piece.ids
            learned += [piece.learned] * len(piece.ids)
    flush()
    return found
