"""A trained model ready for use.

sampler = Sampler.load('runs/emoji')
(apple,) = sampler.generate('red apple', seed=0)
sampler.caption(apple)
sampler.answer(apple, 'What colour is it?')

A model that one device cannot hold is loaded sharded: Sampler.load(workdir, mesh={'tensor': 4},
dtype='bfloat16').
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.data import arrays, spans
from rf_jax.data.messages import Message
from rf_jax.data.records import clean
from rf_jax.data.tokenizer import Tokenizer, load_tokenizer
from rf_jax.generation import arguments, captioning, generated_image, image_sampling, inputs
from rf_jax.generation.chat import Conversation, answers
from rf_jax.generation.chat_engine import ChatEngine
from rf_jax.generation.chat_programs import ChatPrograms
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.generation.inputs import Request
from rf_jax.generation.placement import ONE_DEVICE, Placement
from rf_jax.generation.trained_weights import read_params
from rf_jax.models import unified
from rf_jax.runtime import compilation, paths, renamed_fields, storage
from rf_jax.runtime.errors import Unavailable, UserError, require
from rf_jax.training import bounds

ROWS = 32  # rows of a compiled call: shorter batches are padded, longer ones split into calls

Size = tuple[int, int]


class Sampler:
    """A model with its tokenizer: `generate`, `caption` and `answer`.

    Batches may have any length. Programs are compiled on their first use.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: unified.Unified,
        params: Any,
        tokenizer: Tokenizer,
        placement: Placement = ONE_DEVICE,
    ):
        """`model` and `params` are those of `placement`. With several processes, all of them must
        make the same calls.
        """
        self.config, self.model, self.params, self.tokenizer = config, model, params, tokenizer
        self.placement = placement
        self.step: int | None = None  # of the checkpoint, if the parameters are from one
        self.pool = spans.pool_of(config)  # 0: the representation has no tokens
        self._programs: dict = {}

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        step: int | None = None,
        mesh: Mapping[str, int] | Mesh | None = None,
        dtype: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> 'Sampler':
        """The EMA parameters of a run, from its folder alone; each device reads its own shards.

        `step` of the checkpoint; None is the newest. `mesh`: devices along `tensor` (heads and
        feed-forwards), `expert` (routed experts) and `data` (rows, by default the rest), or a
        Mesh; None: one device. `dtype`: 'bfloat16', or None: that of the run. `sampling`: fields of
        `config.sampling` in place of those of the run. Raises UserError if the folder is not a run,
        its model cannot be sharded so, or a field does not fit.
        """
        workdir = paths.anywhere(workdir, '--workdir')
        path = workdir / 'config.json'
        if not storage.exists(path):
            raise UserError(f'--workdir={workdir} has no config.json; give the folder of a run')
        try:
            config = ConfigDict(json.loads(storage.read(path)))
        except Unavailable:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f'{path} cannot be read: {error}') from None
        renamed_fields.check(config, path)
        compilation.use_local_cache()
        tokenizer = load_tokenizer(workdir)
        try:
            for_this_machine(config)
            image_sampling.change(config, sampling or {})
            placement = Placement.for_inference(config, mesh, dtype)
            model = placement.model(config, tokenizer.size)
            sampler = cls(config, model, None, tokenizer, placement)
            sampler.options()  # a missing field fails here rather than in the first `generate`
        except (AttributeError, KeyError) as error:
            raise UserError(
                f'{path} was written by another version of rf_jax: {error}. Add the field as in '
                'configs/base.py'
            ) from None
        sampler.step, params = read_params(workdir, step, config, tokenizer.size, placement)
        rows = len(params['text_embed']['table'])
        require(
            rows == tokenizer.size,
            f'--workdir={workdir}: its tokenizer has {tokenizer.size} tokens, but its checkpoint '
            f'{rows}: put the tokenizer back that it was trained with',
        )
        sampler.params = placement.by_layer(params, free=True)
        return sampler

    def options(self, **changes) -> image_sampling.Options:
        """`config.sampling` with changes; a value of None changes nothing.

        Raises UserError for an unknown option or a value that is out of bounds.
        """
        names = image_sampling.Options.__dataclass_fields__
        if unknown := [name for name in changes if name not in names]:
            raise UserError(f'generate has no option {unknown[0]!r}; options: {", ".join(names)}')
        bounds.check({f'sampling.{k}': v for k, v in changes.items() if v is not None})
        return image_sampling.options(self.config, **changes)

    def generate(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        size: Size | Sequence[Size] | None = None,
        number: int | Sequence[int] | None = None,
        **options,
    ) -> list[GeneratedImage]:
        """One image for each prompt; its randomness depends only on (seed, prompt, number).

        `size` (height, width) in pixels, of all images or one a prompt; None is a square of the
        largest training size. `number` tells images of one prompt apart, of all or one a prompt;
        None numbers the occurrences of a prompt from 0, so that `['red apple'] * 4` gives four
        different images. `options`: fields of `config.sampling`, such as steps=50.

        Raises UserError for a seed, a size, an option or a number of values that does not fit.
        """
        return list(self.generate_each(prompts, seed, size, number, **options))

    def generate_each(
        self, prompts, seed=0, size=None, number=None, **options
    ) -> Iterator[GeneratedImage]:
        """The images of `generate` one after another, each as soon as it is there."""
        prompts = [clean(each) for each in arguments.strings(prompts, 'prompts')]
        seed = arguments.integer('seed', seed)
        sizes = [None] * len(prompts)
        if size is not None:
            sizes = arguments.integers('size', size, prompts, (2,))
        numbers = (
            arguments.occurrences(prompts)
            if number is None
            else arguments.integers('number', number, prompts)
        )
        each = zip(prompts, [seed] * len(prompts), numbers, sizes)
        requests = [inputs.request(self.config, *given) for given in each]
        images = self._images(requests, self.options(**options))
        for (image, tokens), prompt, n in zip(images, prompts, numbers):
            yield GeneratedImage(image, tokens, prompt, seed, n)

    def caption(self, images: Any) -> str | list[str]:
        """A caption of each image; a string if one image was given.

        `images`: uint8 [h, w, 3] or anything else that `data.arrays.as_rgb` takes (other arrays,
        Pillow images, paths), one or a sequence. Raises UserError for what is not an image.
        """
        return self.answer(images, '')

    def answer(self, images: Any, questions: str | Sequence[str]) -> str | list[str]:
        """The greedy answer to a question about each image.

        `images`: as `caption` takes them. One question may be asked about several images, and
        several questions about one image; a string if both are single. An empty question asks
        for a caption. Raises UserError for what is not an image, and for lists of unequal length.
        """
        one_image, one_question = arrays.is_single(images), isinstance(questions, str)
        images = arrays.as_rgb(images, self.config.data.max_pixels)
        questions = arguments.strings(questions, 'questions')
        if one_image:
            images *= len(questions)
        if one_question:
            questions *= len(images)
        if len(questions) != len(images):
            raise UserError(
                f'{len(images)} images and {len(questions)} questions: give one question for all '
                'images, or one for each'
            )
        limit = spans.question_room(self.tokenizer, self.config.data.max_text_tokens)
        inputs.warn_of_long(self.config, self.tokenizer, 'question', map(clean, questions), limit)
        answers = []
        for chunk, padded in _chunks(list(zip(images, questions)), self.placement):
            tokens = self._answer(padded)[: len(chunk)]
            answers += [self.tokenizer.decode(row.tolist()) for row in tokens]
        return answers[0] if one_image and one_question else answers

    def chat(self, messages: Sequence, **settings) -> Message | list[Message]:
        """The assistant's next message of a conversation, or of each of several.

        `messages`: `data.messages.Message`s, or mappings as in OpenAI's API; an image is anything
        that `caption` takes, or a GeneratedImage. `settings`: those of `chat_answer.Settings`, such
        as temperature=0.7, max_tokens=64, seed=0, size=(64, 64), and those of `generate`. Raises
        UserError.
        """
        one = isinstance(messages, str | Message) or not isinstance(messages, Sequence)
        one = one or not messages or isinstance(messages[0], Message | Mapping)
        found = answers(self, [messages] if one else messages, settings)
        return found[0] if one else found

    def conversation(self) -> Conversation:
        """A new conversation, to be continued turn by turn."""
        return Conversation(self)

    def chat_row(self) -> ChatRow:
        """An empty row for a `chat_engine`."""
        return ChatRow(self.config, self.tokenizer, self.model.channels)

    def chat_engine(self, rows: int) -> ChatEngine:
        """An engine for up to `rows` conversations at once; all share their programs."""
        if 'chat' not in self._programs:
            self._programs['chat'] = ChatPrograms(
                self.model, self.config, self.tokenizer, self.placement
            )
        rows = self.placement.full(rows)
        return ChatEngine(self._programs['chat'], self.params, self.tokenizer, rows)

    def _images(self, requests: Sequence[Request], options: image_sampling.Options):
        """(image, tokens) of each request, as in `GeneratedImage`."""
        patch = self.config.data.patch_size
        inputs.warn_of_long_prompts(self.config, self.tokenizer, [r.prompt for r in requests])
        for chunk, padded in _chunks(requests, self.placement):
            patches, tokens = self._generate(padded, options)
            for request, values, row in zip(chunk, patches, tokens):
                size = request.height, request.width
                image = generated_image.from_patches(values, size, patch, self.pool)
                yield image, generated_image.token_map(row, size, patch, self.pool)

    def _generate(self, requests: Sequence[Request], options: image_sampling.Options):
        """(patches float32 [B, P, C], tokens [B, N, ...]) of one compiled call."""
        weights = options.without_images().weights_of(len(requests))
        options = options.program()
        if options not in self._programs:

            def generate(params, rows, seeds, weights):
                keys = jax.vmap(jax.random.key)(seeds)
                given = self.model, self.config, options, params, rows, keys, weights
                return image_sampling.generate(*given)

            self._programs[options] = self.placement.jit(generate)
        rows = inputs.generation_rows(self.config, self.tokenizer, self.model.channels, requests)
        seeds = np.array([r.seed for r in requests], np.uint32)
        arguments = self.placement.inputs((rows, seeds, weights))
        patches, tokens = self._programs[options](self.params, *arguments)
        return np.asarray(patches), np.asarray(tokens)

    def _answer(self, pairs: Sequence[tuple[np.ndarray, str]]) -> np.ndarray:
        """Answers int32 [B, length] of one compiled call."""
        length = self.config.sampling.max_answer_tokens
        if ('answer', length) not in self._programs:
            self._programs['answer', length] = self.placement.jit(
                partial(captioning.answer, self.model, length=length, ends=self.tokenizer.ends)
            )
        rows = inputs.answer_rows(self.config, self.tokenizer, self.model.channels, pairs, length)
        arguments = self.placement.inputs(rows)
        return np.asarray(self._programs['answer', length](self.params, *arguments))


def for_this_machine(config: ConfigDict) -> None:
    """Replaces the fields of a run's config that were chosen for the machine of its training.

    Sampling reads none of the other such fields (mesh, offload, threads, compilation_cache).
    """
    config.model.attention.implementation = 'auto'
    config.model.backbone.moe.grouped_matmul = 'auto'


def _chunks(items: Sequence, placement: Placement):
    """(chunk, chunk padded with its first item to ROWS); where there are few items in all, to the
    next power of two, and up to four only to as many rows as the devices need.
    """
    most, count = placement.full(ROWS), len(items)
    rows = min(placement.full(count if count <= 4 else 2 ** math.ceil(math.log2(count))), most)
    for start in range(0, count, most):
        chunk = list(items[start : start + most])
        yield chunk, chunk + [chunk[0]] * (rows - len(chunk))
