"""The next image of several conversations: their rows in each context, and what comes of them."""

import math
from collections.abc import Sequence

import numpy as np

from rf_jax.data import layout
from rf_jax.data.batch import Batch
from rf_jax.data.conversation import Dropped
from rf_jax.generation import guidance
from rf_jax.generation.chat_programs import ChatPrograms
from rf_jax.generation.chat_row import ChatRow, Fitted, chat_capacity
from rf_jax.generation.generated_image import GeneratedImage, from_patches, token_map
from rf_jax.runtime.rng import fold


def generate(
    programs: ChatPrograms,
    params,
    rows: Sequence[ChatRow],
    seeds: Sequence[int],
    size: tuple[int, int],
    options,
    most: int,
) -> list[GeneratedImage]:
    """The next image of each row, which it is given; `size` (height, width) in pixels, `options` of
    `image_sampling`, `most` images at once. The randomness of an image depends on the seed of its
    row, and on its number.
    """
    own = [fold(seed, 'image', len(row.images)) % 2**31 for seed, row in zip(seeds, rows)]
    # Padded with the first row, so that few programs are compiled.
    padding = programs.placement.full(padded_count(len(rows), most)) - len(rows)
    padded = [*rows, *rows[:1] * padding]
    branches = {(context, True) for context in options.contexts()} | set(options.branches())
    batches = {branch: _batch(programs, padded, size, *branch) for branch in branches}
    keys = np.array([*own, *own[:1] * padding], np.uint32)
    patches, tokens = map(np.asarray, programs.generate(params, batches, keys, options))
    patch, found = programs.config.data.patch_size, []
    for row, seed, its_patches, its_tokens in zip(rows, seeds, patches, tokens):
        image = from_patches(its_patches, size, patch, row.pool)
        shown = token_map(its_tokens, size, patch, row.pool)
        count = 0 if shown is None else shown.shape[0] * shown.shape[1]
        row.drawn(Fitted(image, its_tokens[:count] if count else None))
        found.append(GeneratedImage(image, shown, row.request, seed))
    return found


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
