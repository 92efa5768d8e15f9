"""The examples of sets with an index: sizes of any number of them at once, from the index alone.

Their captions and questions are used word for word. The random choices of an example are hashes of
(seed, task, index, epoch); sizes assume the longest caption or answer of those that a sample has.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from rf_jax.data import compose, fitting, image_ops, layout, spans
from rf_jax.data.compose import Composer, Draws
from rf_jax.data.hashing import uniform
from rf_jax.data.layout import SIZES
from rf_jax.data.records import Record
from rf_jax.data.resizing import Target
from rf_jax.data.shards.reader import TOGETHER, Shards
from rf_jax.data.shards.sample import Sample
from rf_jax.runtime.rng import fold

# What the numbers of `uniform` decide.
_SIZE, _CAPTION, _ASKED, _QUESTION, _NUMBER, _DROPS = 0, 1, 2, 3, 4, 5

At = tuple[int, int]  # index and epoch of an example


class ShardImages:
    """Captioned images of shards, one by one: what evaluation needs of a `records.Source`."""

    def __init__(self, name: str, shards: Shards, max_pixels: int):
        self.name, self._shards, self._max_pixels = name, shards, max_pixels

    def __len__(self) -> int:
        return len(self._shards)

    def record(self, i: int) -> Record:
        row = self._shards.sample(i)
        return self._shards.read(i).record(int(row['height']), int(row['width']))

    def image(self, i: int, target: Target | None = None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return image_ops.read_rgb(self._shards.read(i).images[0], self._max_pixels, target)


class IndexedPool(ABC):
    """A `pools.Pool`: the examples of one task from the shards of one set; a class for each."""

    task: ClassVar[str]
    together = TOGETHER
    has_images = True
    has_text = False

    def __init__(self, name: str, shards: Shards, composer: Composer, seed: int, entry: int):
        self.shards, self.composer, self.data = shards, composer, composer.data
        self._source = ShardImages(name, shards, composer.data.max_pixels)
        self._key = fold(seed, 'draw', self.task, entry)  # wherever the set lies

    def __len__(self) -> int:
        return len(self.shards)

    def at(self, index: int) -> tuple[ShardImages, int]:
        """(source, number in it) of an example."""
        return self._source, index

    def sizes(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """int64[S, 6] as `layout.SIZES`, for indices and epochs int64[S]; reads the index alone."""
        found = self._sizes(self.shards.samples(index), index, epoch)
        columns = [np.broadcast_to(found.get(name, 0), len(index)) for name in SIZES]
        return np.stack(columns, 1).astype(np.int64)

    def spans(
        self, index: int, epoch: int, counts: Counter, decode: bool = True
    ) -> list[layout.Span]:
        """The spans of an example. Raises BadImage if it cannot be read."""
        sample, images = self.shards.read(index), compose.no_pixels
        most = self.data.max_pixels

        def pixels_of(number: int) -> compose.PixelsOf:
            encoded = sample.images[number]
            return lambda height, width, pool: self.composer.patches(
                image_ops.read_rgb(encoded, most, self.composer.target(height, width)),
                *(height, width, pool),
            )

        given = pixels_of if decode else lambda _: images
        return self._spans(sample, (int(index), int(epoch)), given, counts)

    @abstractmethod
    def _sizes(self, rows: np.ndarray, index: np.ndarray, epoch: np.ndarray) -> Mapping:
        """What SAMPLE[S] use of each of SIZES: int64[S] or a number, 0 by default."""

    @abstractmethod
    def _spans(self, sample: Sample, at: At, pixels_of, counts: Counter) -> list[layout.Span]:
        """The spans of a sample that was read; `pixels_of(number)` of one of its images."""

    def _draw(self, index, epoch, draw: int):
        """float64[S] in (0, 1) for int64[S], or a float for int."""
        return uniform(self._key, index, epoch, draw=draw)

    def _pick(self, choices: Sequence, at: At, draw: int):
        return choices[int(self._draw(*at, draw) * len(choices))]

    def _longest(self, index, epoch):
        return fitting.picks(self._draw(index, epoch, _SIZE), self.data.sizes)

    def _patches(self, rows: np.ndarray, longest: np.ndarray) -> np.ndarray:
        """int64[S] of SAMPLE[S] or IMAGE[S]."""
        return fitting.patches(
            rows['height'], rows['width'], longest, self.data, self.composer.pool
        )

    def _size(self, at: At) -> compose.Size:
        """Height and width to which the image of an example is resized."""
        row = self.shards.sample(at[0])
        size = int(row['height']), int(row['width'])
        return self.composer.size(size, int(self._longest(*at)))


class GeneratedPool(IndexedPool):
    """A caption, and the image to generate."""

    task = 'text_to_image'

    def _sizes(self, rows, index, epoch):
        pool, patches = self.composer.pool, self._patches(rows, self._longest(index, epoch))
        text = rows['prompt'].astype(np.int64) + spans.OF_A_PROMPT
        drop_text, _, drop_both = self._dropped(index, epoch)
        return {
            'text': np.where(drop_text | drop_both, 0, np.minimum(text, self.data.max_text_tokens)),
            'representation': patches // pool**2 + 1 if pool else 0,
            'pixels': patches,
            'pixel_images': 1,
        }

    def _spans(self, sample, at, pixels_of, counts):
        caption = self._pick(sample.captions, at, _CAPTION)
        dropped = self._dropped(*at)
        return self.composer.generated_spans(self._size(at), pixels_of(0), caption, dropped, counts)

    def _dropped(self, index, epoch) -> list:
        """bool[S] or bool: the prompt, the representation, both."""
        data = self.data
        rates = data.text_dropout, data.representation_dropout, data.joint_dropout
        return [self._draw(index, epoch, _DROPS + i) < rate for i, rate in enumerate(rates)]


class SeenPool(IndexedPool):
    """An image to read, and its caption or a question about it and the answer."""

    task = 'image_to_text'

    def _sizes(self, rows, index, epoch):
        asked = self._draw(index, epoch, _ASKED) < self.data.question_prob
        text = np.where(asked, rows['answer'], rows['prompt']).astype(np.int64)
        text += self.composer.tokenizer.chat.question_and_answer
        return {
            'text': np.minimum(text, self.data.max_text_tokens),
            'vision': self._patches(rows, self._longest(index, epoch)) // 4,
            'vision_images': 1,
        }

    def _spans(self, sample, at, pixels_of, counts):
        asked = '', self._pick(sample.captions, at, _CAPTION)
        if sample.questions and self._draw(*at, _ASKED) < self.data.question_prob:
            asked = self._pick(sample.questions, at, _QUESTION)
        return self.composer.seen_spans(self._size(at), pixels_of(0), *asked, counts)


class TextPool(IndexedPool):
    """A caption as a text of its own."""

    task = 'text_only'
    has_images = False

    def _sizes(self, rows, index, epoch):
        # A document has its begin token and all tokens but the last.
        return {'text': np.minimum(rows['prompt'].astype(np.int64) + 1, self.data.max_text_tokens)}

    def _spans(self, sample, at, pixels_of, counts):
        return [self.composer.first_piece(self._pick(sample.captions, at, _CAPTION), counts)]


class ConversationPool(IndexedPool):
    """A conversation, whole: one that a row cannot hold is left out, and takes no room."""

    task = 'conversation'

    def _sizes(self, rows, index, epoch):
        """Without dropout, which makes them smaller."""
        pool = self.composer.pool
        images, owners = self.shards.images(index)
        patches = self._patches(images, self._longest(index, epoch)[owners])
        generated = images['generated'].astype(np.int64)

        def total(values):
            return np.bincount(owners, values, len(index)).astype(np.int64)

        found = {
            'text': rows['prompt'].astype(np.int64),
            'vision': total(patches // 4),
            'representation': total(generated * (patches // pool**2 + 1) if pool else 0 * patches),
            'pixels': total(generated * patches),
            'vision_images': total(np.ones(len(owners))),
            'pixel_images': total(generated),
        }
        fits = np.all([found[name] <= self.data.capacity[name] for name in SIZES], axis=0)
        return {name: np.where(fits, values, 0) for name, values in found.items()}

    def _spans(self, sample, at, pixels_of, counts):
        alone = np.array([at[0]])
        if not self.sizes(alone, np.array([at[1]])).any():
            counts['conversations_left_out'] += 1
            return []
        longest, (images, _) = int(self._longest(*at)), self.shards.images(alone)
        sizes = [self.composer.size((int(h), int(w)), longest) for h, w, _ in images]
        chances = [self._draw(*at, _DROPS + i) for i in range(4)]
        draws = Draws(chances, int(self._draw(*at, _NUMBER) * 2**31))
        return self.composer.conversation_spans(sample.messages, sizes, pixels_of, draws, counts)


# By the kind of a shard, as in `shards.set_file.KINDS`.
POOLS = {
    'captions': (GeneratedPool, SeenPool, TextPool),
    'conversations': (ConversationPool,),
}


def pools(
    name: str, sets: Mapping[str, Shards], composer: Composer, seed: int, entry: int
) -> dict[str, IndexedPool]:
    """A pool for each task that the shards of a source, by kind, can serve; `entry`: its number."""
    return {
        kind.task: kind(name, shards, composer, seed, entry)
        for shard_kind, shards in sets.items()
        for kind in POOLS[shard_kind]
        if len(shards)
    }
