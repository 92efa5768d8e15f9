"""Random rows of examples, and which tokens see which, spelled out without the mask."""

import dataclasses

import numpy as np

from rf_jax.data import layout
from rf_jax.data.layout import Pixels, Representation, Skip, Text, Vision

CHANNELS = 12
CAPACITY = {
    **{'text': 24, 'vision': 12, 'representation': 18, 'pixels': 48},
    **{'vision_images': 3, 'pixel_images': 4},
}
SIDES = (2, 4, 6)


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a row and its place in its example."""

    sample: int
    at: int  # number of its span within the sample
    inside: int  # its place within the span
    spans: tuple

    @property
    def span(self):
        return self.spans[self.at]


def sees(q: Token, k: Token) -> bool:
    """The rules in words, without orders, reaches or blocks."""
    if q.sample != k.sample:
        return False
    if isinstance(k.span, Pixels):
        return q.at == k.at  # noise is for its own image alone
    if q.at == k.at:
        return isinstance(q.span, Vision) or k.inside <= q.inside
    if isinstance(q.span, Pixels) and not q.span.reads_representation:
        begin = next(
            i
            for i in reversed(range(q.at))
            if isinstance(q.spans[i], Representation) and q.spans[i].image == q.span.image
        )
        return k.at < begin
    return k.at < q.at


def tokens_of(samples) -> list[Token | None]:
    """The tokens of a row in the order of memory, None for padding."""
    kinds = {'text': Text, 'vision': Vision, 'representation': Representation, 'pixels': Pixels}
    row = []
    for stream, kind in kinds.items():
        found = [
            Token(number, at, inside, tuple(spans))
            for number, spans in enumerate(samples)
            for at, span in enumerate(spans)
            if isinstance(span, kind)
            for inside in range(layout.size([span])[list(kinds).index(stream)])
        ]
        row += found + [None] * (CAPACITY[stream] - len(found))
    return row


def random_text(rng) -> Text:
    count = int(rng.integers(1, 5))
    return Text(rng.integers(5, 30, count).tolist(), rng.integers(-1, 30, count).tolist())


def random_sample(rng) -> list:
    """Text, images to read and images to generate, in any number and order."""
    spans = []
    for image in range(int(rng.integers(1, 4))):
        height, width = (int(side) for side in rng.choice(SIDES, 2))
        pixels = rng.integers(0, 256, (height * width, CHANNELS), np.uint8)
        kind = rng.choice(['text', 'seen', 'drawn', 'both'])
        if rng.random() < 0.5:
            spans.append(Skip(int(rng.integers(1, 4))) if rng.random() < 0.3 else random_text(rng))
        if kind == 'seen':
            spans.append(Vision(height, width, pixels, image))
        if kind in ('drawn', 'both'):
            reads = bool(rng.random() < 0.7)
            spans.append(Representation(height, width, image))
            spans.append(Pixels(height, width, pixels, image, reads))
        if kind == 'both':  # the finished image is looked at
            spans.append(Vision(height, width, pixels, image))
        if kind == 'text' or rng.random() < 0.5:
            spans.append(random_text(rng))
    return spans


def random_row(seed: int, samples: int = 4) -> list:
    """Examples that fit into a row of `CAPACITY`."""
    rng = np.random.default_rng(seed)
    left = np.array([CAPACITY[name] for name in layout.SIZES])
    row = []
    while len(row) < samples:
        sample = random_sample(rng)
        if (layout.size(sample) <= left).all():
            left = left - layout.size(sample)
            row.append(sample)
        elif rng.random() < 0.1:
            break
    return row


def filled(samples) -> dict[str, np.ndarray]:
    """Arrays of one row without the leading B."""
    batch = layout.make_batch([samples], CAPACITY, CHANNELS)
    return {name: array[0] for name, array in batch.items()}
