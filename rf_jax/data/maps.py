"""Maps of an image that a model answers with: itself, its depth, its segmentation (UniMRG, arXiv
2601.21406).

    user(image, 'draw the depth map of this image') -> assistant(depth)

`pixels` is the image again; a source gives the others (`Source.map`). Each is a task of its own, a
conversation of one exchange.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.data.messages import Message, assistant, user

NAMES = ('pixels', 'depth', 'segmentation', 'regions')
DRAWN = NAMES[1:]  # those that a source must have
TASKS = {f'image_to_{name}': name for name in NAMES}

INSTRUCTIONS = {
    'pixels': (
        'draw this image again',
        'copy this image',
        'draw the same image',
        'show all of it again',
        'draw what is here',
        'make one like this',
        'draw all objects again',
        'the same once more',
    ),
    'depth': (
        'draw the depth map',
        'draw the depth of this image',
        'show what is near and far',
        'how near is each object?',
        'draw how far all of it is',
    ),
    'segmentation': (
        'draw the segmentation map',
        'segment this image',
        'draw the outlines',
        'outline all objects',
        'where are the borders?',
        'draw the border of each object',
        'show where each object ends',
        'divide this image into parts',
    ),
    'regions': (
        'colour each object',
        'draw each object in one colour',
        'paint all objects apart',
        'give each object its own colour',
        'colour the parts of this image',
    ),
}
# In place of an instruction and the image, so that images are generated without them too.
UNCONDITIONAL = ('draw an image', 'draw anything', 'show me an image')
UNCONDITIONAL_SHARE = 0.1  # of `pixels`


def instruction(name: str, rng: np.random.Generator) -> str:
    """One of the wordings that ask for a map."""
    return _choice(INSTRUCTIONS[name], rng)


def texts(names: Sequence[str]) -> Iterator[str]:
    """All that a user says to get these maps."""
    for name in names:
        yield from INSTRUCTIONS[name]
        yield from UNCONDITIONAL if name == 'pixels' else ()


@dataclass(frozen=True)
class MapConversation:
    """A `records.Conversation`: image 0 is that of example `index` of a source, 1 its map `name`,
    both at the size of the image.
    """

    source: object
    index: int
    name: str
    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]

    def image(self, number: int, target=None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        if number == 0 or self.name == 'pixels':
            return self.source.image(self.index, target)
        return self.source.map(self.index, self.name)


def conversation(source, index: int, name: str, rng: np.random.Generator) -> MapConversation:
    """Asks for a map of the image of an example."""
    record = source.record(index)
    if name == 'pixels' and rng.random() < UNCONDITIONAL_SHARE:
        asked = user(_choice(UNCONDITIONAL, rng))
    else:
        asked = user(0, instruction(name, rng))
    sizes = ((record.height, record.width),) * 2
    return MapConversation(source, index, name, (asked, assistant(1)), sizes)


def _choice(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
