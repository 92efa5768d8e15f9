"""Composes the spans of an example from its text and images, as the config asks."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np

from rf_jax.data import (
    conversation,
    data_fields,
    fitting,
    image_ops,
    layout,
    patch_grid,
    resizing,
    spans,
)
from rf_jax.data.messages import Message
from rf_jax.data.resizing import Target
from rf_jax.data.tokenizer import Tokenizer

Size = tuple[int, int]  # height and width in pixels
# `pixels_of(height, width, pool)`: uint8 [P, C] of an image, resized; None for the layout alone.
PixelsOf = Callable[[int, int, int], np.ndarray | None]


def no_pixels(height: int, width: int, pool: int) -> None:
    """In place of pixels where only sizes are wanted."""


@dataclass(frozen=True)
class Draws:
    """The random choices of a generated image: which conditions are dropped.

    `chances`: of text, other images, representation and of text and representation together, in
    [0, 1). `number`: which generated image is kept if the other images are dropped.
    """

    chances: Sequence[float]
    number: int


class Composer:
    """Raises UserError at construction for capacities and lengths that do not fit together."""

    def __init__(self, config, tokenizer: Tokenizer):
        data_fields.check(config)
        data_fields.check_template(config, tokenizer)
        self.data = SimpleNamespace(**config.data)  # a ConfigDict takes 2 us to find a field
        self.tokenizer = tokenizer
        self.pool = spans.pool_of(config)
        self.channels = self.data.patch_size**2 * 3
        self._resizer = resizing.named(self.data.resizer)
        self._fitted = lru_cache(2**16)(partial(fitting.image_size, config=config))

    def size(self, size: Size, longest: int) -> Size:
        """Height and width to which an image is resized."""
        return self._fitted(*size, longest=longest)

    def target(self, height: int, width: int) -> Target:
        """Of an image of this fitted size."""
        return Target(height, width, self._resizer)

    def patches(self, image: np.ndarray, height: int, width: int, pool: int) -> np.ndarray:
        """uint8 [P, C] of an image uint8 [h, w, 3]."""
        image = image_ops.resize(image, height, width, self._resizer)
        return image_ops.patchify(image, self.data.patch_size, pool)

    def seen_spans(
        self, size: Size, pixels_of: PixelsOf, question: str, answer: str, counts: Counter
    ) -> list[layout.Span]:
        """An image of a fitted size, a question about it (or '') and the answer, or a caption."""
        text = spans.question_answer_span(
            self.tokenizer, question, answer, self.data.max_text_tokens, counts
        )
        return [layout.Vision(*self._grid(size), pixels_of(*size, 2)), text]

    def generated_spans(
        self, size: Size, pixels_of: PixelsOf, text: str, dropped: Sequence[bool], counts: Counter
    ) -> list[layout.Span]:
        """A prompt and the image to generate; `dropped`: text, representation, both."""
        data = self.data
        loss_from = 0 if data.prompt_loss else None
        prompt = spans.text_span(self.tokenizer, text, data.max_text_tokens, loss_from, counts)
        drop_text, drop_representation, drop_both = dropped
        return spans.generation_spans(
            [prompt],
            self._grid(size),
            pixels_of(*size, patch_grid.unit(self.pool)),
            self.pool,
            drop_text=bool(drop_text or drop_both),
            drop_representation=bool(drop_representation or drop_both),
            keep_positions=data.dropout_keeps_positions,
        )

    def document(self, text: str) -> list[layout.Text]:
        """Pieces of a text, each an example."""
        return spans.document(self.tokenizer, text, self.data.max_text_tokens)

    def first_piece(self, text: str, counts: Counter) -> layout.Text:
        return spans.first_piece(self.tokenizer, text, self.data.max_text_tokens, counts)

    def conversation_spans(
        self,
        messages: Sequence[Message],
        sizes: Sequence[Size],
        pixels_of: Callable[[int], PixelsOf],
        draws: Draws,
        counts: Counter,
    ) -> list[layout.Span]:
        """Messages whose images are numbers in `sizes`, fitted; `pixels_of` one of these numbers.

        The last turns are dropped if a row cannot hold them; [] if it cannot hold the first.
        """
        grids = [self._grid(size) for size in sizes]

        def spans_of(messages, pixels, dropped=conversation.NOTHING, counts=counts):
            pieces = conversation.Template(self.tokenizer, self.data.max_text_tokens, counts).pieces
            return conversation.to_spans(
                *(pieces(messages), grids.__getitem__, pixels, self.pool),
                *(dropped, self.data.dropout_keeps_positions),
            )

        room = [self.data.capacity[name] for name in layout.SIZES]
        whole = messages
        while (layout.size(spans_of(messages, _nothing, counts=Counter())) > room).any():
            messages = conversation.without_last_turn(messages)
            if not messages:
                counts['conversations_left_out'] += 1
                return []
        if len(messages) < len(whole):
            counts['conversations_truncated'] += 1
        pixels = lambda number, pool: pixels_of(number)(*sizes[number], pool)  # noqa: E731
        return spans_of(messages, pixels, self._dropped(messages, draws))

    def _dropped(self, messages: Sequence[Message], draws: Draws) -> conversation.Dropped:
        """Which conditions of the generated images are dropped; none without such images."""
        data, learned = self.data, conversation.learned_images(messages)
        if not learned:
            return conversation.NOTHING
        rates = data.text_dropout, data.image_dropout, data.representation_dropout
        *own, joint = (np.asarray(draws.chances) < (*rates, data.joint_dropout)).tolist()
        text, images, representation = (each or joint for each in own)
        images = images and sum(len(m.images) for m in messages) > 1  # there are others
        return conversation.Dropped(
            text, images, representation, kept=learned[draws.number % len(learned)]
        )

    def _grid(self, size: Size) -> tuple[int, int]:
        return size[0] // self.data.patch_size, size[1] // self.data.patch_size


def _nothing(image, pool: int) -> None:
    """Pixels of no image of a conversation."""
