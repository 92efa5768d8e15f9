"""From examples to batches: captions, sizes, condition dropout, decoding, prefetching.

`Batches.batch(step)` is a pure function of (seed, step). A process makes only the rows that its
devices hold.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import grain
import numpy as np
from absl import logging

from rf_jax.data import (
    captions,
    conversation,
    data_fields,
    image_ops,
    layout,
    maps,
    patch_grid,
    spans,
)
from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.data_fields import CONVERSING, TASKS
from rf_jax.data.mixture import Example, Mixture
from rf_jax.data.packing.plan import Plan
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import reused_generator

_MAX_UNDECODABLE = 100  # consecutive undecodable images that stop the run


class Batches:
    """Everything between the sources and the train step.

    `rows`: which rows of every global batch to make, ascending; default: all.
    Raises UserError at construction for impossible capacities or an empty mixture.
    """

    def __init__(
        self,
        config,
        sources: Sequence,
        tokenizer: Tokenizer,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        data_fields.check(config)
        self.seed = config.seed
        self.data = SimpleNamespace(**config.data)  # a ConfigDict takes 2 us to find a field
        self.image_size = functools.lru_cache(2**16)(functools.partial(image_size, config=config))
        self.tokenizer = tokenizer
        data_fields.check_template(config, tokenizer)
        self.rows = np.arange(config.data.batch_size) if rows is None else np.asarray(rows)
        self.counts: Counter = Counter()  # what was truncated or left out; logged as metrics data/*
        self._undecodable = 0  # undecodable images since the last one that could be decoded
        self.examples = _examples_by_task(
            sources, lambda text: spans.document(tokenizer, text, self.data.max_text_tokens)
        )
        self.channels = self.data.patch_size**2 * 3
        self.pool = spans.pool_of(config)
        self._images = ByteCache(megabytes=256)
        weights = {task: float(self.data.tasks.get(task, 0.0)) for task in TASKS}
        empty = [t for t in TASKS if weights[t] > 0 and not self.examples[t]]
        if empty or not any(weights.values()):
            raise UserError(data_fields.unserved(self.data.sources, empty))
        counts = {task: len(self.examples[task]) for task in TASKS}
        self.plan = Plan(
            Mixture(counts, weights, config.seed),
            self.sizes,
            [self.data.capacity[name] for name in layout.SIZES],
            self.data.batch_size,
            self.counts,
        )

    def sizes(self, task: str, index: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        """int64[S, 6] as `layout.SIZES`, for indices and epochs int64[S]; decodes nothing."""
        examples = (Example(task, *each) for each in zip(index.tolist(), epoch.tolist()))
        return np.stack([layout.size(self.spans(example, decode=False)) for example in examples])

    def spans(self, example: Example, decode: bool = True) -> list[layout.Span]:
        """The spans of an example. Raises image_ops.BadImage if its image cannot be decoded."""
        source, index, piece = self.examples[example.task][example.index]
        rng = reused_generator(self.seed, 'draw', example.task, example.index, example.epoch)
        counts = self.counts if decode else Counter()  # planning counts nothing
        longest = _pick(rng, self.data.sizes)
        if example.task in CONVERSING:
            name = maps.TASKS.get(example.task)
            found = (
                maps.conversation(source, index, name, rng) if name else source.conversations[index]
            )
            return self._conversation(
                found, (id(source), index, name), rng, longest, decode, counts
            )
        record = source.record(index)
        if example.task == 'text_only':
            caption = record.captions[0]
            return [
                piece
                or spans.first_piece(self.tokenizer, caption, self.data.max_text_tokens, counts)
            ]
        height, width = self.image_size(record.height, record.width, longest=longest)
        grid = (height // self.data.patch_size, width // self.data.patch_size)
        seen = example.task == 'image_to_text'
        pool = 2 if seen else patch_grid.unit(self.pool)  # determines the order of patches
        pixels = self._pixels(source, index, height, width, pool) if decode else None
        if seen:
            question, answer = captions.question_and_answer(record, rng, self.data.question_prob)
            text = spans.question_answer_span(
                self.tokenizer, question, answer, self.data.max_text_tokens, counts
            )
            return [layout.Vision(*grid, pixels), text]
        loss_from = 0 if self.data.prompt_loss else None
        text = captions.prompt(record, rng, self.data.label_prob)
        prompt = spans.text_span(self.tokenizer, text, self.data.max_text_tokens, loss_from, counts)
        drop_text, drop_representation, drop_both = rng.random(3) < (
            self.data.text_dropout,
            self.data.representation_dropout,
            self.data.joint_dropout,
        )
        return spans.generation_spans(
            [prompt],
            grid,
            pixels,
            self.pool,
            drop_text=bool(drop_text or drop_both),
            drop_representation=bool(drop_representation or drop_both),
            keep_positions=self.data.dropout_keeps_positions,
        )

    def _conversation(self, found, key, rng, longest, decode, counts) -> list[layout.Span]:
        """The spans of a conversation, without the last turns if a row cannot hold them.

        `key`: of its images in the cache.
        """
        data = self.data
        sizes = [self.image_size(*size, longest=longest) for size in found.sizes]
        grids = [tuple(side // data.patch_size for side in size) for size in sizes]
        drops = rng.random(4), int(rng.integers(2**31))

        def pixels_of(number, pool):
            return self._images.get(
                (*key, number, *sizes[number], pool),
                lambda: self._patches(found.image(number, sizes[number]), *sizes[number], pool),
            )

        def spans_of(messages, pixels_of, dropped=conversation.NOTHING, counts=counts):
            pieces = conversation.Template(self.tokenizer, data.max_text_tokens, counts).pieces
            return conversation.to_spans(
                *(pieces(messages), grids.__getitem__, pixels_of, self.pool),
                *(dropped, data.dropout_keeps_positions),
            )

        room = [data.capacity[name] for name in layout.SIZES]
        messages = found.messages
        while (layout.size(spans_of(messages, _no_pixels, counts=Counter())) > room).any():
            shorter = conversation.without_last_turn(messages)
            if not shorter:
                counts['conversations_left_out'] += 1
                return []
            messages = shorter
        if len(messages) < len(found.messages):
            counts['conversations_truncated'] += 1
        pixels = pixels_of if decode else _no_pixels
        return spans_of(messages, pixels, self._dropped(messages, *drops))

    def _dropped(self, messages, chances, number: int) -> conversation.Dropped:
        """Which conditions of the generated images are dropped; none without such images."""
        data, learned = self.data, conversation.learned_images(messages)
        if not learned:
            return conversation.NOTHING
        rates = data.text_dropout, data.image_dropout, data.representation_dropout
        *own, joint = (chances < (*rates, data.joint_dropout)).tolist()
        text, images, representation = (each or joint for each in own)
        images = images and sum(len(m.images) for m in messages) > 1  # there are others
        return conversation.Dropped(
            text, images, representation, kept=learned[number % len(learned)]
        )

    def _pixels(self, source, index: int, height: int, width: int, pool: int) -> np.ndarray:
        key = (id(source), index, height, width, pool)
        return self._images.get(
            key, lambda: self._patches(source.image(index, (height, width)), height, width, pool)
        )

    def _patches(self, image, height, width, pool) -> np.ndarray:
        image = image_ops.resize(image, height, width)
        return image_ops.patchify(image, self.data.patch_size, pool)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows `self.rows` of global batch `step`: arrays of `layout.empty`, leading len(rows).

        Raises UserError when too many consecutive images cannot be decoded.
        """
        rows = [self._row(examples) for examples in self.plan.rows(step, self.rows)]
        return layout.make_batch(rows, dict(self.data.capacity), self.channels)

    def _row(self, examples) -> list[list[layout.Span]]:
        row = []
        for example in examples:
            try:
                row.append(self.spans(example))
                if example.task != 'text_only':
                    self._undecodable = 0
            except image_ops.BadImage as error:
                source, index, _ = self.examples[example.task][example.index]
                self.counts['undecodable_images'] += 1
                self._undecodable += 1
                if self._undecodable >= _MAX_UNDECODABLE:
                    raise UserError(
                        f'{self._undecodable} consecutive images cannot be decoded; the last is '
                        f'example {index} of {source.name}: {error}. Do data.sources still exist?'
                    ) from error
                if self.counts['undecodable_images'] <= 10:
                    logging.warning('skipped example %d of %s: %s', index, source.name, error)
        return row

    def iterate(self, start_step: int, stop_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches of steps start_step .. stop_step - 1, prefetched by grain's reader threads."""
        dataset = grain.MapDataset.source(_Steps(self, start_step, stop_step))
        options = grain.ReadOptions(
            num_threads=self.data.threads, prefetch_buffer_size=self.data.prefetch
        )
        return iter(dataset.to_iter_dataset(options))


def _no_pixels(image, pool: int) -> None:
    """In place of pixels where only sizes are wanted."""


def image_size(height: int, width: int, config, longest: int | None = None) -> tuple[int, int]:
    """(height, width) in pixels to which an image is resized for training and evaluation.

    `longest` defaults to the largest of `data.sizes`. Small images are not enlarged beyond the
    smallest entry.
    """
    data, unit = config.data, patch_grid.unit(spans.pool_of(config))
    sizes = [size for size, _ in data.sizes]
    longest = min(longest or max(sizes), max(height, width, min(sizes)))
    return image_ops.target_size(height, width, longest, unit * data.patch_size)


def _pick(rng: np.random.Generator, sizes) -> int:
    chance = rng.random() * sum(weight for _, weight in sizes)
    for size, weight in sizes:
        if chance < weight:
            return size
        chance -= weight
    return sizes[-1][0]


def _examples_by_task(
    sources, document: Callable[[str], list[layout.Text]]
) -> dict[str, list[tuple[object, int, layout.Text | None]]]:
    """For each task, the (source, index, piece of its document) that can serve it."""
    found: dict[str, list] = {task: [] for task in TASKS}
    for source in sources:
        found['conversation'] += [
            (source, index, None) for index in range(len(source.conversations))
        ]
        for name in maps.DRAWN:
            drawn = source.maps.get(name, ())
            found[f'image_to_{name}'] += [(source, index, None) for index in drawn]
        if source.procedural:  # each example has an image and captions
            both = [(source, index, None) for index in range(len(source))]
            found['text_to_image'] += both
            found['image_to_text'] += both
            found['image_to_pixels'] += both
            continue
        for index in range(len(source)):
            record = source.record(index)
            if record.height and record.captions:
                example = (source, index, None)
                found['text_to_image'].append(example)
                found['image_to_text'].append(example)
                found['image_to_pixels'].append(example)
            elif record.captions:
                pieces = document(record.captions[0])
                found['text_only'] += [(source, index, piece) for piece in pieces]
    if not found['text_only']:  # captions are text too
        found['text_only'] = list(found['text_to_image'])
    return found


class _Steps:
    """Random access by step, the interface of a grain data source."""

    def __init__(self, batches: Batches, start: int, stop: int):
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.batches.batch(self.start + int(index))
