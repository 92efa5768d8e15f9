"""The next image of several conversations: their rows in each context, and what comes of them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from rf_jax.data import layout
from rf_jax.data.batch import Batch
from rf_jax.data.conversation import Dropped
from rf_jax.generation import guidance, image_sampling, inputs
from rf_jax.generation.chat_answer import LENGTH, Answer, Said
from rf_jax.generation.chat_programs import ChatPrograms
from rf_jax.generation.chat_row import ChatRow, Fitted, chat_capacity
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.image_run import ImageRun
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold


def begin(
    programs: ChatPrograms,
    params,
    rows: Sequence[ChatRow],
    seeds: Sequence[int],
    size: tuple[int, int],
    each: Sequence[image_sampling.Options],
    most: int,
) -> ImageRun:
    """The next image of each row; `size` (height, width) in pixels, options of each, which differ
    in scales only, `most` images at once. The randomness of an image depends on the seed of its
    row, and on its number.
    """
    own = [fold(seed, 'image', len(row.images)) % 2**31 for seed, row in zip(seeds, rows)]
    # Padded with the first row, so that few programs are compiled.
    padding = programs.placement.full(padded_count(len(rows), most)) - len(rows)
    rows, own, each = ([*those, *those[:1] * padding] for those in (rows, own, each))
    weights = [options.weights() for options in each]
    weights = guidance.stacked(weights, _keys(programs, each[0]))
    batches = {branch: _batch(programs, rows, size, *branch) for branch in weights.rows()}
    return ImageRun(programs, params, batches, own, size, each[0], weights)


class ChatImages:
    """The images that rows of a chat have begun: those of one size and program are generated
    together, one group after the other, so that text waits for one chunk only.
    """

    def __init__(self, programs: ChatPrograms, params, most: int):
        self._programs, self._params, self._most = programs, params, most
        self._run: ImageRun | None = None
        self._members: list[tuple[int, int, Answer]] = []  # (image of the run, row, its answer)

    def drop(self, answer: Answer | None) -> None:
        """Ends the image of an answer that nobody waits for any more."""
        self._members = [each for each in self._members if each[2] is not answer]
        if not self._members:
            self._run = None

    def step(self, answers: Mapping[int, Answer]) -> dict[int, Said]:
        """One chunk of the images that are being generated; `answers`: of all rows that want one.
        Rows that begin an image meanwhile are the next.
        """
        said = {i: Said() for i in answers}
        for answer in answers.values():
            answer.waited += 1
        if self._run is None:
            said |= self._begin(answers)
        if self._run is None:
            return said
        run = self._run
        run.step()
        for number, i, answer in self._members:
            if run.done:
                said[i] = _finished(run, number, answer)
            else:
                said[i] = Said(partial=run.partial(number, answer.settings.partial_images))
        if run.done:
            self._run, self._members = None, []
        return said

    def _begin(self, answers: Mapping[int, Answer]) -> dict[int, Said]:
        """Begins the group of who waits longest; rows without room for their image end."""
        said, groups = {}, {}
        for i, answer in sorted(answers.items(), key=lambda each: -each[1].waited):
            row, settings = answer.row, answer.settings
            size = settings.size or (row.images and row.images[-1].image.size)
            size = size or inputs.largest_square(self._programs.config)
            try:
                row.check_image(size)
            except UserError:
                answer.wants_image, answer.ended = False, LENGTH
                said[i] = Said(ended=LENGTH)
                continue
            options = settings.sampling if row.images else settings.sampling.without_images()
            keys = _keys(self._programs, options)
            key = size, options.program(), frozenset((*keys.pixels, *keys.tokens))
            groups.setdefault(key, []).append((i, answer, options))
        if groups:
            group = next(iter(groups.values()))
            size = next(iter(groups))[0]
            rows, seeds, each = zip(*((a.row, a.settings.seed, options) for _, a, options in group))
            self._run = begin(self._programs, self._params, rows, seeds, size, each, self._most)
            self._members = [(number, i, a) for number, (i, a, _) in enumerate(group)]
        return said


def _finished(run: ImageRun, number: int, answer: Answer) -> Said:
    """Image `number` of a run that is done; its row is given it."""
    row, image, tokens = answer.row, run.image(number), run.tokens(number)
    in_order = None if tokens is None else tokens.reshape(-1, *tokens.shape[2:])
    row.drawn(Fitted(image, in_order))
    answer.wants_image, answer.waited, answer.ended = False, 0, '' if answer.left else LENGTH
    found = GeneratedImage(image, tokens, row.request, answer.settings.seed)
    return Said(image=found, ended=answer.ended)


def _keys(programs: ChatPrograms, options: image_sampling.Options) -> guidance.Weights:
    """Weights whose keys the programs are compiled for: those of the config, if they suffice."""
    known, own = image_sampling.options(programs.config), options.weights()
    if not options.guidance_image:
        known = known.without_images()
    return known.weights() if own.within(known.weights()) else own


def padded_count(count: int, most: int) -> int:
    """`count` rounded up to a power of four, or to `most`."""
    return min(4 ** math.ceil(math.log(count, 4)), most)


def _batch(
    programs: ChatPrograms,
    rows: Sequence[ChatRow],
    size: tuple[int, int],
    context: str,
    kept: bool,
) -> Batch:
    """Conversations up to their next image, as `image_sampling.generate` takes them."""
    config, begin = programs.config, programs.begin
    without_text, alone = context != guidance.ALL, context == guidance.NONE
    examples = []
    for row in rows:
        before = len(row.generated)
        dropped = Dropped(without_text, alone, representation=not kept, kept=before)
        spans = row.spans(row.with_image(size), dropped, before)
        # What will be read of the new image is not there yet.
        examples.append([spans[:-1] if isinstance(spans[-1], layout.Vision) else spans])
    patches = size[0] * size[1] // config.data.patch_size**2
    capacity = chat_capacity(config) | {'pixels': patches, 'pixel_images': 1}
    batch = layout.make_batch(examples, capacity, programs.model.channels)
    if rows[0].pool:
        shape = len(rows), capacity['representation'], *begin.shape[1:]
        batch |= {'tokens': np.zeros(shape, begin.dtype), 'start': np.zeros(len(rows), np.int32)}
        for i, row in enumerate(() if alone else rows):
            known = row.inputs(begin)
            batch['tokens'][i, : len(known)], batch['start'][i] = known, len(known)
    return batch
