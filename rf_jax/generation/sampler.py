"""A trained model ready to draw and describe; in a notebook: `Sampler.load('runs/emoji')`."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rf_jax.data import arrays, images, layout, patch_grid, pipeline, spans
from rf_jax.data.records import clean
from rf_jax.data.tokenizer import Tokenizer
from rf_jax.generation import captioning, image_sampling
from rf_jax.generation.placement import ONE_DEVICE, Placement
from rf_jax.models import unified
from rf_jax.runtime import checkpoint, compilation, paths, renamed_fields
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold
from rf_jax.training import bounds

ROWS = 32  # rows of a compiled call; fewer requests are filled up, more are cut into calls
ROUND = 8  # text capacities are rounded up to this, so that few programs are compiled


@dataclass(frozen=True)
class Request:
    """A picture to draw: size in pixels, seed of its own."""

    prompt: str
    height: int
    width: int
    seed: int


class Sampler:
    """Holds what drawing needs: `draw(requests)` and `describe(pictures)`."""

    def __init__(
        self,
        config,
        model: unified.Unified,
        params: Any,
        tokenizer: Tokenizer,
        placement: Placement = ONE_DEVICE,
    ):
        """`model` and `params` as `placement` gives them. On several processes all must make the
        same calls.
        """
        self.config, self.model, self.params, self.tokenizer = config, model, params, tokenizer
        self.placement = placement
        self.step: int | None = None  # of the checkpoint, if the weights are from one
        self.pool = spans.pool_of(config)  # 0: no representation tokens
        self._programs: dict = {}

    @classmethod
    def load(cls, workdir: str | os.PathLike, step: int | None = None) -> 'Sampler':
        """From a run's folder alone, with the EMA weights. Raises UserError if it is no run."""
        workdir = paths.local(workdir, '--workdir')
        path = workdir / 'config.json'
        if not path.exists():
            raise UserError(f'--workdir={workdir} holds no config.json; give the folder of a run')
        try:
            config = ConfigDict(json.loads(path.read_text(encoding='utf-8')))
        except (OSError, ValueError) as error:
            raise UserError(f'{path} cannot be read: {error}') from None
        renamed_fields.check(config, path)
        compilation.use_cache_of_this_machine()
        tokenizer = Tokenizer.load(workdir / 'tokenizer.model')
        step, saved = checkpoint.restore_to_device(workdir / 'checkpoints', step, only='ema')
        try:
            for_this_machine(config)
            sampler = cls(config, unified.build(config, tokenizer.size), saved['ema'], tokenizer)
            sampler.options()  # its fields are read now, not at the first drawing
        except (AttributeError, KeyError) as error:
            raise UserError(
                f'{path} was written by another version of rf_jax: {error}. Add the field as '
                'configs/base.py has it'
            ) from None
        sampler.step = step
        return sampler

    def options(self, **changes) -> image_sampling.Options:
        """`config.sampling` with changes; None changes nothing.

        Raises UserError for a number that is out of its bounds.
        """
        bounds.check({f'sampling.{k}': v for k, v in changes.items() if v is not None})
        return image_sampling.options(self.config, **changes)

    def request(self, prompt: str, seed: int, number: int = 0, size=None) -> Request:
        """A request whose randomness depends on (seed, prompt, number) alone.

        `size` (height, width) in pixels; None is a square of the largest training size. Raises
        UserError for a size that does not divide into groups of patches.
        """
        group = patch_grid.unit(self.pool)
        unit = group * self.config.data.patch_size
        height, width = size or (max(entry[0] for entry in self.config.data.sizes),) * 2
        if height < unit or width < unit or height % unit or width % unit:
            raise UserError(
                f'--size={height}x{width}: both sides must be multiples of {unit} pixels '
                f'({group} x data.patch_size)'
            )
        frame = self.config.model.representation.position_grid
        token = self.pool * self.config.data.patch_size
        if token and max(height, width) // token > frame:
            raise UserError(
                f'--size={height}x{width}: the longest side may be {frame * token} pixels '
                f'({self.pool} x data.patch_size x model.representation.position_grid)'
            )
        prompt = clean(prompt)
        return Request(prompt, height, width, fold(seed, prompt, number) % 2**31)

    def draw(self, requests: Sequence[Request], options: image_sampling.Options | None = None):
        """List of uint8 [height, width, 3], one a request."""
        return self.draw_with_codes(requests, options)[0]

    def draw_with_codes(
        self, requests: Sequence[Request], options: image_sampling.Options | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Pictures as `draw`, and their representation tokens: int32 [rows, columns], or features
        float32 [rows, columns, Denc] where they are continuous; without tokens [0, 0].
        """
        pictures, tokens, patch = [], [], self.config.data.patch_size
        limit = self.config.data.max_text_tokens
        self._warn_of_truncated('prompt', [r.prompt for r in requests], limit - 2)
        for chunk, full in _chunks(requests, self.placement):
            patches, codes = self._draw(full, options or self.options())
            for request, values, row in zip(chunk, patches, codes):
                height, width = request.height // patch, request.width // patch
                picture = images.unpatchify(
                    values[: height * width], request.height, request.width, patch, self.pool
                )
                pictures.append(np.clip((picture + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8))
                grid = (height // self.pool, width // self.pool) if self.pool else (0, 0)
                tokens.append(row[: grid[0] * grid[1]].reshape(*grid, *row.shape[1:]))
        return pictures, tokens

    def _draw(self, requests: Sequence[Request], options: image_sampling.Options):
        """(patches float32 [B, P, C], codes int32 [B, R - 1]) of one compiled call."""
        seeds = np.array([r.seed for r in requests], np.uint32)
        if options not in self._programs:

            def draw(params, rows, seeds):
                keys = jax.vmap(jax.random.key)(seeds)
                return image_sampling.draw(self.model, self.config, options, params, rows, keys)

            self._programs[options] = self.placement.jit(draw)
        inputs = self.placement.inputs((self.rows(requests), seeds))
        patches, codes = self._programs[options](self.params, *inputs)
        return np.asarray(patches), np.asarray(codes)

    def rows(self, requests: Sequence[Request]) -> dict[tuple[bool, bool], dict]:
        """{(text kept, representation kept): layout arrays}, one sample a row."""
        data = self.config.data
        prompts = [
            spans.text_span(self.tokenizer, r.prompt, data.max_text_tokens, None, Counter())
            for r in requests
        ]
        grids = [(r.height // data.patch_size, r.width // data.patch_size) for r in requests]
        patches = max(h * w for h, w in grids)
        capacity = {
            'text': _round(max(len(p.tokens) for p in prompts)),
            'vision': 0,
            'representation': patches // self.pool**2 + 1 if self.pool else 0,
            'pixels': patches,
            'vision_pictures': 0,
            'pixel_pictures': 1,
        }

        def place(text: bool, representation: bool):
            samples = [
                [
                    spans.generation_spans(
                        [prompt],
                        grid,
                        None,
                        self.pool,
                        drop_text=not text,
                        drop_representation=not representation,
                        keep_positions=data.dropout_keeps_positions,
                    )
                ]
                for prompt, grid in zip(prompts, grids)
            ]
            return layout.make_batch(samples, capacity, self.model.channels)

        return {(c, r): place(c, r) for c in (True, False) for r in (True, False)}

    def describe(self, pictures: Sequence[np.ndarray], questions: Sequence[str] = ()) -> list[str]:
        """Answers; without questions the pictures are described.

        `pictures`: uint8 [h, w, 3] or whatever else `arrays.as_rgb` takes (other arrays, Pillow
        images, paths). Raises UserError for what is no picture, and for questions that are not as
        many as the pictures.
        """
        pictures = arrays.as_rgb(pictures, self.config.data.max_pixels)
        questions = list(questions) or [''] * len(pictures)
        if len(questions) != len(pictures):
            raise UserError(
                f'describe got {len(pictures)} pictures and {len(questions)} questions: give one '
                'question a picture, or none'
            )
        self._warn_of_truncated(
            'question', map(clean, questions), self.config.data.max_text_tokens // 2
        )
        answers = []
        for chunk, full in _chunks(list(zip(pictures, questions)), self.placement):
            tokens = self._describe(full)[: len(chunk)]
            answers += [self.tokenizer.decode(row.tolist()) for row in tokens]
        return answers

    def _describe(self, pairs) -> np.ndarray:
        data, length = self.config.data, self.config.sampling.max_answer_tokens
        rows, heads = [], []
        for picture, question in pairs:
            height, width = pipeline.picture_size(*picture.shape[:2], self.config)
            pixels = images.patchify(images.resize(picture, height, width), data.patch_size)
            head = spans.question_answer_span(
                self.tokenizer, clean(question), None, data.max_text_tokens, Counter()
            )
            heads.append(len(head.tokens))
            open_text = layout.Text([*head.tokens, *[self.tokenizer.pad] * length])
            vision = layout.Vision(height // data.patch_size, width // data.patch_size, pixels)
            rows.append([[vision, open_text]])
        sizes = np.max([layout.size(row[0]) for row in rows], axis=0)
        capacity = dict(zip(layout.SIZES, sizes.tolist()))
        capacity['text'] = _round(capacity['text'])
        batch = layout.make_batch(rows, capacity, self.model.channels)
        if ('describe', length) not in self._programs:
            self._programs['describe', length] = self.placement.jit(
                partial(captioning.describe, self.model, length=length, eos=self.tokenizer.eos)
            )
        inputs = self.placement.inputs((batch, np.array(heads, np.int32)))
        return np.asarray(self._programs['describe', length](self.params, *inputs))

    def _warn_of_truncated(self, what: str, texts: Iterable[str], most: int) -> None:
        """Logs how many different texts have more tokens than `most`; the rest of each is lost."""
        distinct = dict.fromkeys(texts)
        long = [text for text in distinct if text and len(self.tokenizer.encode(text)) > most]
        if long:
            logging.warning(
                '%d of %d %s(s) were truncated to %d tokens (data.max_text_tokens=%d): %r',
                *(len(long), len(distinct), what, most, self.config.data.max_text_tokens),
                long[0] if len(long[0]) <= 60 else f'{long[0][:57]}...',
            )


def for_this_machine(config: ConfigDict) -> None:
    """Replaces in a run's config what was chosen for the machine that trained it.

    The rest of such settings (mesh, offload, threads, compilation_cache) nobody reads here.
    """
    config.model.attention.implementation = 'auto'
    config.model.backbone.moe.grouped_matmul = 'auto'


def _round(count: int) -> int:
    return -(-count // ROUND) * ROUND


def _chunks(items: Sequence, placement: Placement):
    """(chunk, chunk filled up to ROWS by its first item); a few items are filled up to as many as
    the devices need.
    """
    most = placement.full(ROWS)
    for start in range(0, len(items), most):
        chunk = list(items[start : start + most])
        rows = placement.full(len(items)) if len(items) <= 4 else most
        yield chunk, chunk + [chunk[0]] * (rows - len(chunk))
