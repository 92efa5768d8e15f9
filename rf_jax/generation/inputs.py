"""Prompts, questions and images as rows of `data.layout`, one example a row."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rf_jax.data import fitting, image_ops, layout, patch_grid, spans
from rf_jax.data.batch import Batch
from rf_jax.data.records import clean
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.generation import guidance
from rf_jax.generation.guidance import Branch
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold

ROUND = 8  # text capacities are rounded up to a multiple of this, so that few programs are compiled


@dataclass(frozen=True)
class Request:
    """One image to generate. `height` and `width` are in pixels; `seed` is the image's own."""

    prompt: str
    height: int
    width: int
    seed: int


def request(
    config: ConfigDict,
    prompt: str,
    seed: int,
    number: int = 0,
    size: tuple[int, int] | None = None,
) -> Request:
    """A request whose randomness depends only on (seed, prompt, number).

    `size` (height, width) in pixels; None is a square of the largest training size. Raises
    UserError if the model cannot generate images of that size.
    """
    height, width = size or largest_square(config)
    check_size(config, height, width)
    prompt = clean(prompt)
    return Request(prompt, height, width, fold(seed, prompt, number) % 2**31)


def largest_square(config: ConfigDict) -> tuple[int, int]:
    """(height, width) in pixels of a square of the largest training size."""
    return (max(entry[0] for entry in config.data.sizes),) * 2


def parsed_size(text: str) -> tuple[int, int]:
    """(height, width) of a flag HEIGHTxWIDTH. Raises UserError."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if not match:
        raise UserError(f'--size={text}: expected HEIGHTxWIDTH, for example 64x96')
    return int(match[1]), int(match[2])


def check_size(config: ConfigDict, height: int, width: int) -> None:
    """Raises UserError if the model cannot generate images of that size."""
    pool, patch = spans.pool_of(config), config.data.patch_size
    group = patch_grid.unit(pool)
    unit = group * patch
    if height < unit or width < unit or height % unit or width % unit:
        raise UserError(
            f'size={height}x{width}: both sides must be multiples of {unit} pixels '
            f'({group} x data.patch_size)'
        )
    longest = config.model.representation.position_grid * pool * patch
    if longest and max(height, width) > longest:
        raise UserError(
            f'size={height}x{width}: the longest side may be {longest} pixels '
            f'({pool} x data.patch_size x model.representation.position_grid)'
        )


def warn_of_long_prompts(config: ConfigDict, tokenizer: Tokenizer, prompts: Iterable[str]) -> None:
    """Logs how many different prompts are longer than what is read of them."""
    limit = config.data.max_text_tokens - 2  # begin and end
    warn_of_long(config, tokenizer, 'prompt', prompts, limit)


def warn_of_long(
    config: ConfigDict, tokenizer: Tokenizer, what: str, texts: Iterable[str], limit: int
) -> None:
    """Logs how many different texts have more than `limit` tokens; the rest is dropped."""
    distinct = dict.fromkeys(texts)
    long = [text for text in distinct if text and len(tokenizer.encode(text)) > limit]
    if long:
        logging.warning(
            '%d of %d %s(s) were truncated to %d tokens (data.max_text_tokens=%d): %r',
            *(len(long), len(distinct), what, limit, config.data.max_text_tokens),
            long[0] if len(long[0]) <= 60 else f'{long[0][:57]}...',
        )


def generation_rows(
    config: ConfigDict,
    tokenizer: Tokenizer,
    channels: int,
    requests: Sequence[Request],
    text: int = 0,
) -> dict[Branch, Batch]:
    """The rows of the requests for each guidance branch.

    `channels`: C, values of a patch; `text`: tokens of the text stream, 0 for as many as needed.
    Gives {(context, representation kept): batch} for the contexts ALL and NONE, each with and
    without the representation.
    """
    prompts = [prompt_span(config, tokenizer, r.prompt) for r in requests]
    return rows_after(config, channels, prompts, [(r.height, r.width) for r in requests], text)


def prompt_span(config: ConfigDict, tokenizer: Tokenizer, prompt: str) -> layout.Text:
    """What stands before the image of a prompt."""
    return spans.text_span(tokenizer, prompt, config.data.max_text_tokens, None, Counter())


def rows_after(
    config: ConfigDict,
    channels: int,
    prompts: Sequence[layout.Text],
    sizes: Sequence[tuple[int, int]],
    text: int = 0,
) -> dict[Branch, Batch]:
    """The same for images of `sizes` (height, width) in pixels, each after a span of text."""
    data, pool = config.data, spans.pool_of(config)
    grids = [(height // data.patch_size, width // data.patch_size) for height, width in sizes]
    patches = max(h * w for h, w in grids)
    capacity = {
        'text': text or _rounded(max(len(p.tokens) for p in prompts)),
        'vision': 0,
        'representation': patches // pool**2 + 1 if pool else 0,
        'pixels': patches,
        'vision_images': 0,
        'pixel_images': 1,
    }

    def place(text: bool, representation: bool) -> Batch:
        examples = [
            [
                spans.generation_spans(
                    [prompt],
                    grid,
                    None,
                    pool,
                    drop_text=not text,
                    drop_representation=not representation,
                    keep_positions=data.dropout_keeps_positions,
                )
            ]
            for prompt, grid in zip(prompts, grids)
        ]
        return layout.make_batch(examples, capacity, channels)

    kept = {guidance.ALL: True, guidance.NONE: False}
    return {(context, rep): place(kept[context], rep) for context in kept for rep in (True, False)}


def answer_rows(
    config: ConfigDict,
    tokenizer: Tokenizer,
    channels: int,
    pairs: Sequence[tuple[np.ndarray | None, str]],
    length: int,
) -> tuple[Batch, np.ndarray]:
    """Rows of an image and a question, with room for an answer of `length` tokens.

    `pairs`: (uint8 [h, w, 3] or None, question); `channels`: C, values of a patch. Gives (batch,
    tokens before each answer int32 [B]).
    """
    data = config.data
    rows, prompt_lengths = [], []
    for image, question in pairs:
        prompt = spans.question_answer_span(
            tokenizer, clean(question), None, data.max_text_tokens, Counter()
        )
        prompt_lengths.append(len(prompt.tokens))
        text = layout.Text([*prompt.tokens, *[tokenizer.pad] * length])
        rows.append([[*([] if image is None else [_vision(config, image)]), text]])
    sizes = np.max([layout.size(row[0]) for row in rows], axis=0)
    capacity = dict(zip(layout.SIZES, sizes.tolist()))
    capacity['text'] = _rounded(capacity['text'])
    return layout.make_batch(rows, capacity, channels), np.array(prompt_lengths, np.int32)


def _vision(config: ConfigDict, image: np.ndarray) -> layout.Vision:
    patch = config.data.patch_size
    height, width = fitting.image_size(*image.shape[:2], config)
    pixels = image_ops.patchify(image_ops.resize(image, height, width), patch)
    return layout.Vision(height // patch, width // patch, pixels)


def _rounded(count: int) -> int:
    return -(-count // ROUND) * ROUND
