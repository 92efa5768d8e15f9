"""Continues several conversations at once: text in chunks, images where the model begins one.

Each row holds one conversation or none. `step` brings all rows forward together and gives what they
said; a row may be given another conversation at any time.
"""

from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from rf_jax.data import layout
from rf_jax.data.conversation import Dropped
from rf_jax.generation import guidance, image_sampling, inputs, text_sampling
from rf_jax.generation.chat_programs import CHUNK, ChatPrograms, Context
from rf_jax.generation.chat_row import STREAMS, ChatRow, Fitted, chat_capacity
from rf_jax.generation.generated_image import GeneratedImage, from_patches, token_map
from rf_jax.models.attention.masks import FIELDS
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold

ROUND = 16  # numbers of new tokens are rounded up to a multiple of this: few programs
LENGTH, STOP = 'length', 'stop'  # why an answer ended


@dataclass(frozen=True)
class Settings:
    """How an answer is sampled. `temperature` 0 is greedy; `max_tokens` 0 is as many as the row has
    room for; `size` (height, width) in pixels of images, None: as the last one, else a square of
    the largest training size; `images` False: text only.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    max_tokens: int = 0
    size: tuple[int, int] | None = None
    images: bool = True
    sampling: image_sampling.Options = field(default_factory=image_sampling.Options)


@dataclass
class Answer:
    """A row that is being answered. `left`: text tokens that may still be sampled; `ended`: '', or
    LENGTH or STOP.
    """

    row: ChatRow
    settings: Settings
    left: int
    wants_image: bool = False
    ended: str = ''


@dataclass(frozen=True)
class Said:
    """What a row said in a step: text tokens or an image; `ended` as in Answer."""

    tokens: tuple[int, ...] = ()
    image: GeneratedImage | None = None
    ended: str = ''


class ChatEngine:
    """`rows` conversations at most, on one device."""

    def __init__(self, programs: ChatPrograms, params, tokenizer, rows: int):
        self.programs, self.params, self.tokenizer = programs, params, tokenizer
        self.config, self.model = programs.config, programs.model
        self.answers: list[Answer | None] = [None] * rows
        self._capacity = chat_capacity(self.config)
        self._size = sum(self._capacity[name] for name in STREAMS)
        backbone = self.config.model.backbone
        shape = backbone.layers, rows, self._size, backbone.kv_heads, backbone.head_dim
        cache = jnp.zeros(shape, self.model.dtype), jnp.zeros(shape, self.model.dtype)
        self._context = Context(cache, jnp.zeros((rows, tokenizer.size), jnp.float32))
        self._begin = np.asarray(self.model.kind.begin(self.model.config, 1))

    def start(self, number: int, row: ChatRow, settings: Settings) -> None:
        """Lets row `number` answer a conversation. Raises UserError if there is no room."""
        if settings.size:
            inputs.check_size(self.config, *settings.size)
        if row.left() < 1:
            raise UserError(
                f'the conversation fills data.capacity.text={self.config.data.capacity.text} '
                'tokens: start a new conversation'
            )
        self.answers[number] = Answer(row, settings, settings.max_tokens or row.left())

    def step(self) -> dict[int, Said]:
        """Brings every row that has not ended one chunk of text, or one image, forward."""
        live = {i: a for i, a in enumerate(self.answers) if a is not None and not a.ended}
        self._run_known(live)
        drawing = [i for i, answer in live.items() if answer.wants_image]
        said = self._write({i: answer for i, answer in live.items() if not answer.wants_image})
        return said | {i: self._draw(live[i]) for i in drawing}

    def _fields(self, rooms: dict[int, int]) -> dict[str, np.ndarray]:
        """Attention integers and positions [B, S, ...] with room for text in some rows."""
        empty = layout.empty(self._capacity, self.model.channels)
        arrays = [
            empty if answer is None else answer.row.arrays(rooms.get(i, 0))
            for i, answer in enumerate(self.answers)
        ]
        return {name: np.stack([each[name] for each in arrays]) for name in (*FIELDS, 'position')}

    def _run_known(self, live: dict[int, Answer]) -> None:
        """Brings the tokens that are known and not yet in the cache there."""
        known = {i: answer.row.known() for i, answer in live.items()}
        counts = {
            stream: max((known[i][stream] - live[i].row.cached[stream] for i in live), default=0)
            for stream in STREAMS
        }
        if not any(counts.values()):
            return
        counts = {stream: -(-count // ROUND) * ROUND for stream, count in counts.items()}
        rows = [self._new(live.get(i), counts) for i in range(len(self.answers))]
        new = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        self._context = self.programs.extend(self.params, self._fields({}), self._context, new)
        for i, answer in live.items():
            answer.row.cached.update(known[i])

    def _new(self, answer: Answer | None, counts: dict[str, int]) -> dict[str, np.ndarray]:
        """New tokens of a row, padded to `counts`; the slot of padding is beyond the cache."""
        slots = {stream: np.full(n, self._size, np.int32) for stream, n in counts.items()}
        pixels, begin = 4 * counts['vision'], self._begin
        new = {
            'text_tokens': np.zeros(counts['text'], np.int32),
            'vision_pixels': np.zeros((pixels, self.model.channels), np.uint8),
            'vision_image': np.full(pixels, -1, np.int32),
            'vision_coords': np.zeros((pixels, 2), np.float32),
            'vision_counts': np.zeros(self._capacity['vision_images'], np.int32),
            'tokens': np.zeros((counts['representation'], *begin.shape[1:]), begin.dtype),
            'cells': np.full((counts['representation'], 2), -1, np.int32),
            'last': np.int32(-1),
        }
        if answer is not None:
            self._fill(answer.row, new, slots)
        return new | {'slots': np.concatenate([slots[stream] for stream in STREAMS])}

    def _fill(self, row: ChatRow, new: dict[str, np.ndarray], slots: dict[str, np.ndarray]) -> None:
        arrays, known, offset = row.arrays(0), row.known(), 0
        at = {}
        for stream in STREAMS:
            at[stream] = np.arange(row.cached[stream], known[stream])
            slots[stream][: len(at[stream])] = offset + at[stream]
            offset += self._capacity[stream]
        text, vision, tokens = (at[stream] for stream in STREAMS)
        new['text_tokens'][: len(text)] = arrays['text_tokens'][text]
        new['last'] = np.int32(len(text) - 1)
        if len(vision):
            four = slice(4 * vision[0], 4 * vision[-1] + 4)
            image = arrays['vision_image'][four]
            new['vision_pixels'][: 4 * len(vision)] = arrays['vision_pixels'][four]
            new['vision_image'][: 4 * len(vision)] = image - image[0]
            new['vision_coords'][: 4 * len(vision)] = arrays['vision_coords'][four]
            sizes = arrays['vision_counts'][image[0] : image[-1] + 1]
            new['vision_counts'][: len(sizes)] = sizes
        if len(tokens):
            new['tokens'][: len(tokens)] = row.inputs(self._begin)[tokens]
            new['cells'][: len(tokens)] = arrays['cells'][tokens]

    def _write(self, answers: dict[int, Answer]) -> dict[int, Said]:
        """Samples a chunk of text in these rows."""
        if not answers:
            return {}
        count, special = len(self.answers), self.tokenizer
        left, place = np.zeros(count, np.int32), np.zeros(count, np.int32)
        rule = text_sampling.Rule(
            temperature=np.zeros(count, np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            seed=np.zeros(count, np.uint32),
        )
        forbidden = np.zeros((count, special.size), bool)
        forbidden[:, [special.pad, special.bos, special.answer]] = True
        for i, answer in answers.items():
            s = answer.settings
            left[i], place[i] = min(answer.left, answer.row.left()), answer.row.cached['text']
            for array, value in zip(rule, (s.temperature, s.top_k, s.top_p, s.seed % 2**32)):
                array[i] = value
            forbidden[i, special.image] = not s.images
        fields = self._fields({i: min(int(left[i]), CHUNK) for i in answers})
        self._context, after, tokens = self.programs.decode(
            self.params, fields, self._context, place, left, rule, forbidden
        )
        written, tokens = np.asarray(after) - place, np.asarray(tokens)
        return {i: self._read(a, tokens[:, i], int(written[i])) for i, a in answers.items()}

    def _read(self, answer: Answer, column: np.ndarray, written: int) -> Said:
        """Takes the tokens of a chunk, of which `written` are in the cache."""
        tokens = tuple(int(token) for token in column if token != text_sampling.NOTHING)
        answer.row.wrote(tokens)
        answer.row.cached['text'] += written
        answer.left -= len(tokens)
        stop = tokens[written:]
        answer.wants_image = stop == (self.tokenizer.image,)
        if stop == (self.tokenizer.eos,):
            answer.ended = STOP
        elif not answer.wants_image and min(answer.left, answer.row.left()) < 1:
            answer.ended = LENGTH
        return Said(tokens[:written], ended=answer.ended)

    def _draw(self, answer: Answer) -> Said:
        """Generates the image that a row has begun."""
        row, settings = answer.row, answer.settings
        answer.wants_image = False
        size = settings.size or (row.images and row.images[-1].image.size)
        size = size or inputs.largest_square(self.config)
        try:
            row.check_image(size)
        except UserError:
            answer.ended = LENGTH
            return Said(ended=LENGTH)
        options = settings.sampling if row.images else settings.sampling.without_images()
        branches = {(context, True) for context in options.contexts()} | set(options.branches())
        rows = {branch: self._branch(row, size, *branch) for branch in branches}
        seed = fold(settings.seed, 'image', len(row.images)) % 2**31
        seeds = np.array([seed], np.uint32)
        patches, tokens = self.programs.generate(self.params, rows, seeds, options)
        patch, tokens = self.config.data.patch_size, np.asarray(tokens)[0]
        image = from_patches(np.asarray(patches)[0], size, patch, row.pool)
        shown = token_map(tokens, size, patch, row.pool)
        row.drawn(
            Fitted(image, None if shown is None else tokens[: shown.shape[0] * shown.shape[1]])
        )
        return Said(image=GeneratedImage(image, shown, row.request, settings.seed))

    def _branch(self, row: ChatRow, size: tuple[int, int], context: str, kept: bool):
        """A conversation with its next image as `image_sampling.generate` takes it."""
        before = len(row.generated)
        text, images = context != guidance.ALL, context == guidance.NONE
        dropped = Dropped(text, images, representation=not kept, kept=before)
        spans = row.spans(row.with_image(size), dropped, before)
        if isinstance(spans[-1], layout.Vision):  # it is not there yet
            spans = spans[:-1]
        patches = size[0] * size[1] // self.config.data.patch_size**2
        capacity = self._capacity | {'pixels': patches, 'pixel_images': 1}
        batch = layout.make_batch([[spans]], capacity, self.model.channels)
        if before and row.pool:
            known = row.inputs(self._begin)[: 0 if images else None]
            tokens = np.zeros((1, capacity['representation'], *known.shape[1:]), known.dtype)
            tokens[0, : len(known)] = known
            batch |= {'tokens': tokens, 'start': np.array([len(known)], np.int32)}
        return batch
