"""The examples of sources that list every one of them: their sizes and spans, by task."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from rf_jax.data import captions, compose, fitting, layout, maps
from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.compose import Composer, Draws
from rf_jax.data.data_fields import CONVERSING, TASKS
from rf_jax.data.resizing import Target
from rf_jax.runtime.rng import reused_generator

# A source, the number of an example, and of a text the piece that is this example.
Entry = tuple[object, int, layout.Text | None]


class ListedPool:
    """A `pools.Pool`: the examples of one task."""

    together = 1

    def __init__(
        self, task: str, entries: Sequence[Entry], composer: Composer, seed: int, cache: ByteCache
    ):
        self.task, self.entries, self.composer = task, entries, composer
        self._seed, self._cache = seed, cache
        self.has_images = task != 'text_only'
        self.has_text = any(piece for *_, piece in entries[:1])  # rather than captions as text

    def __len__(self) -> int:
        return len(self.entries)

    def at(self, index: int) -> tuple[object, int]:
        """(source, number in it) of an example."""
        return self.entries[index][:2]

    def sizes(self, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """int64[S, 6] as `layout.SIZES`, for indices and epochs int64[S]; decodes nothing."""
        examples = zip(index.tolist(), epoch.tolist())
        counts = Counter()  # planning counts nothing
        return np.stack([layout.size(self._spans(*each, None, counts)) for each in examples])

    def spans(
        self, index: int, epoch: int, counts: Counter, decode: bool = True
    ) -> list[layout.Span]:
        """The spans of an example. Raises BadImage if its image cannot be decoded."""
        return self._spans(index, epoch, self._cache if decode else None, counts)

    def _spans(self, index, epoch, cache: ByteCache | None, counts) -> list[layout.Span]:
        source, number, piece = self.entries[index]
        composer, data = self.composer, self.composer.data
        rng = reused_generator(self._seed, 'draw', self.task, index, epoch)
        longest = fitting.pick(rng.random(), data.sizes)
        if self.task in CONVERSING:
            return self._conversation(source, number, rng, longest, cache, counts)
        record = source.record(number)
        if self.task == 'text_only':
            return [piece or composer.first_piece(record.captions[0], counts)]
        size = composer.size((record.height, record.width), longest)
        pixels_of = self._pixels_of(cache, (id(source), number), partial(source.image, number))
        if self.task == 'image_to_text':
            asked = captions.question_and_answer(record, rng, data.question_prob)
            return composer.seen_spans(size, pixels_of, *asked, counts)
        text = captions.prompt(record, rng, data.label_prob)
        dropped = rng.random(3) < (
            data.text_dropout,
            data.representation_dropout,
            data.joint_dropout,
        )
        return composer.generated_spans(size, pixels_of, text, dropped, counts)

    def _conversation(self, source, number, rng, longest, cache, counts) -> list[layout.Span]:
        name = maps.TASKS.get(self.task)
        found = (
            maps.conversation(source, number, name, rng) if name else source.conversations[number]
        )
        draws = Draws(rng.random(4), int(rng.integers(2**31)))
        key = id(source), number, name

        def pixels_of(image: int) -> compose.PixelsOf:
            return self._pixels_of(cache, (*key, image), partial(found.image, image))

        sizes = [self.composer.size(size, longest) for size in found.sizes]
        return self.composer.conversation_spans(found.messages, sizes, pixels_of, draws, counts)

    def _pixels_of(
        self, cache: ByteCache | None, key: tuple, image: Callable[[Target], np.ndarray]
    ) -> compose.PixelsOf:
        if cache is None:
            return compose.no_pixels

        def pixels(height, width, pool):
            def make() -> np.ndarray:
                resized = image(self.composer.target(height, width))
                return self.composer.patches(resized, height, width, pool)

            return cache.get((*key, height, width, pool), make)

        return pixels


def by_task(sources: Sequence, composer: Composer) -> Mapping[str, list[Entry]]:
    """For each task, the entries of all sources that can serve it."""
    found: dict[str, list[Entry]] = {task: [] for task in TASKS}
    for source in sources:
        found['conversation'] += [
            (source, number, None) for number in range(len(source.conversations))
        ]
        for name in maps.DRAWN:
            drawn = source.maps.get(name, ())
            found[f'image_to_{name}'] += [(source, number, None) for number in drawn]
        numbers = range(len(source))
        if not source.procedural:
            numbers = [i for i in numbers if source.record(i).height and source.record(i).captions]
            for number in range(len(source)):
                record = source.record(number)
                if record.captions and not record.height:
                    pieces = composer.document(record.captions[0])
                    found['text_only'] += [(source, number, piece) for piece in pieces]
        with_image = [(source, number, None) for number in numbers]
        for task in ('text_to_image', 'image_to_text', 'image_to_pixels'):
            found[task] += with_image
    if not found['text_only']:  # captions are text too
        found['text_only'] = list(found['text_to_image'])
    return found


def pools(
    sources: Sequence, composer: Composer, seed: int, cache: ByteCache
) -> dict[str, ListedPool]:
    """A pool for each task."""
    make = partial(ListedPool, composer=composer, seed=seed, cache=cache)
    return {task: make(task, entries) for task, entries in by_task(sources, composer).items()}
