"""Continues several conversations at once: text in chunks, images where the model begins one.

Each row holds one conversation or none. `step` brings all rows forward together and gives what they
said; a row may be given another conversation at any time.
"""

import numpy as np

from rf_jax.data import layout
from rf_jax.generation import inputs, text_sampling
from rf_jax.generation.chat_answer import LENGTH, STOP, Answer, Said, Settings
from rf_jax.generation.chat_images import ChatImages
from rf_jax.generation.chat_programs import CHUNK, ChatPrograms
from rf_jax.generation.chat_row import STREAMS, ChatRow, chat_capacity
from rf_jax.models.attention.masks import FIELDS
from rf_jax.runtime.errors import UserError

LEAST = 16  # fewest tokens of a program


def buckets(capacity: int) -> list[int]:
    """Numbers of new tokens that programs are compiled for: the capacity by powers of 4."""
    found = [capacity] if capacity else []
    while found and found[-1] // 4 >= LEAST:
        found.append(found[-1] // 4)
    return found


class ChatEngine:
    """`rows` conversations at most; on a mesh, a multiple of its `multiple`."""

    def __init__(self, programs: ChatPrograms, params, tokenizer, rows: int):
        self.programs, self.params, self.tokenizer = programs, params, tokenizer
        self.config, self.model = programs.config, programs.model
        self.answers: list[Answer | None] = [None] * rows
        self._capacity = chat_capacity(self.config)
        self._size = sum(self._capacity[name] for name in STREAMS)
        self._context = programs.new_context(params, rows, self._size, tokenizer.size)
        self._begin = programs.begin
        self._images = ChatImages(programs, params, rows)

    def start(self, number: int, row: ChatRow, settings: Settings, draw: bool = False) -> None:
        """Lets row `number` answer a conversation; `draw`: with one image and no text. Raises
        UserError if there is no room.
        """
        if settings.size:
            inputs.check_size(self.config, *settings.size)
            if settings.images:
                self._check_room(row, settings.size)
        if row.left() < 1:
            raise UserError(
                f'the conversation fills data.capacity.text={self.config.data.capacity.text} '
                'tokens: start a new conversation'
            )
        answer = Answer(row, settings, settings.max_tokens or row.left())
        if draw:
            row.wrote([self.tokenizer.image])
            answer.wants_image, answer.left = True, 0
        self.stop(number)
        self.answers[number] = answer

    def _check_room(self, row: ChatRow, size: tuple[int, int]) -> None:
        """Raises UserError for a size (height, width) of images that no row can hold."""
        try:
            ChatRow(self.config, self.tokenizer, row.channels).check_image(size)
        except UserError:
            raise UserError(
                f'size={size[0]}x{size[1]}: a row of this model (data.capacity) holds no image of '
                'that size; give a smaller one'
            ) from None

    def stop(self, number: int) -> None:
        """Frees row `number`, also in the middle of an image."""
        self._images.drop(self.answers[number])
        self.answers[number] = None

    def warm_up(self, stream: str, count: int) -> None:
        """Compiles the program that takes `count` known tokens of a stream."""
        rows = [self._new(None, stream, 0, count)] * len(self.answers)
        new = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        self._context = self.programs.extend(self.params, self._fields({}), self._context, new)

    def warm_up_text(self) -> None:
        """Compiles the program that samples text."""
        self._sample({})

    def step(self) -> dict[int, Said]:
        """Brings every row that has not ended one chunk of text, or of an image, forward; images
        that others have begun are waited for.
        """
        live = {i: a for i, a in enumerate(self.answers) if a is not None and not a.ended}
        self._run_known(live)
        said = self._write({i: a for i, a in live.items() if not a.wants_image})
        drawn = {i: a for i, a in live.items() if a.wants_image and i not in said}
        return said | self._images.step(drawn)

    def _fields(self, rooms: dict[int, int]) -> dict[str, np.ndarray]:
        """Attention integers and positions [B, S, ...] with room for text in some rows."""
        empty = layout.empty(self._capacity, self.model.channels)
        arrays = [
            empty if answer is None else answer.row.arrays(rooms.get(i, 0), pixels=False)
            for i, answer in enumerate(self.answers)
        ]
        return {name: np.stack([each[name] for each in arrays]) for name in (*FIELDS, 'position')}

    def _run_known(self, live: dict[int, Answer]) -> None:
        """Brings the tokens that are known and not yet in the cache there, stream by stream: so
        there is one program for each stream and number of tokens.
        """
        fields = None
        while True:
            runs = {i: answer.row.next_run() for i, answer in live.items()}
            stream = next((stream for stream, count in runs.values() if count), '')
            if not stream:
                return
            joined = {i: count for i, (own, count) in runs.items() if own == stream}
            fields = self._fields({}) if fields is None else fields
            needed, sizes = max(joined.values()), buckets(self._capacity[stream])
            most = min(size for size in sizes if size >= needed)
            rows = [
                self._new(live[i].row if i in joined else None, stream, joined.get(i, 0), most)
                for i in range(len(self.answers))
            ]
            new = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            self._context = self.programs.extend(self.params, fields, self._context, new)
            for i, count in joined.items():
                live[i].row.cached[stream] += count

    def _new(self, row: ChatRow | None, stream: str, count: int, most: int):
        """`count` new tokens of a stream of a row, padded to `most`; the slot of padding is beyond
        the cache.
        """
        sizes = dict.fromkeys(STREAMS, 0) | {stream: most}
        pixels, tokens = 4 * sizes['vision'], sizes['representation']
        new = {
            'text_tokens': np.zeros(sizes['text'], np.int32),
            'vision_pixels': np.zeros((pixels, self.model.channels), np.uint8),
            'vision_image': np.full(pixels, -1, np.int32),
            'vision_coords': np.zeros((pixels, 2), np.float32),
            'vision_counts': np.zeros(self._capacity['vision_images'], np.int32),
            'tokens': np.zeros((tokens, *self._begin.shape[1:]), self._begin.dtype),
            'cells': np.full((tokens, 2), -1, np.int32),
            'slots': np.full(most, self._size, np.int32),
            'last': np.int32(-1),
        }
        if row is None:
            return new
        arrays, first = row.arrays(0), row.cached[stream]
        own = slice(first, first + count)
        offset = sum(self._capacity[s] for s in STREAMS[: STREAMS.index(stream)])
        new['slots'][:count] = offset + np.arange(own.start, own.stop)
        if stream == 'text':
            new['text_tokens'][:count] = arrays['text_tokens'][own]
            new['last'] = np.int32(count - 1)
        elif stream == 'vision':
            four = slice(4 * own.start, 4 * own.stop)
            image = arrays['vision_image'][four]
            new['vision_pixels'][: 4 * count] = arrays['vision_pixels'][four]
            new['vision_image'][: 4 * count] = image - image[0]
            new['vision_coords'][: 4 * count] = arrays['vision_coords'][four]
            counts = arrays['vision_counts'][image[0] : image[-1] + 1]
            new['vision_counts'][: len(counts)] = counts
        else:
            new['tokens'][:count] = row.inputs(self._begin)[own]
            new['cells'][:count] = arrays['cells'][own]
        return new

    def _write(self, answers: dict[int, Answer]) -> dict[int, Said]:
        """Samples a chunk of text in these rows."""
        if not answers:
            return {}
        tokens, written = self._sample(answers)
        return {i: self._read(a, tokens[:, i], int(written[i])) for i, a in answers.items()}

    def _sample(self, answers: dict[int, Answer]) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 [CHUNK, B], how many of them are in the cache now [B])."""
        count, special = len(self.answers), self.tokenizer
        left, place = np.zeros(count, np.int32), np.zeros(count, np.int32)
        rule = text_sampling.Rule(
            temperature=np.zeros(count, np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            seed=np.zeros(count, np.uint32),
        )
        forbidden = np.zeros((count, special.size), bool)
        forbidden[:, list(special.specials)] = True
        forbidden[:, list(special.ends)] = False
        for i, answer in answers.items():
            s = answer.settings
            left[i], place[i] = min(answer.left, answer.row.left()), answer.row.cached['text']
            top_k = min(s.top_k, special.size)  # as int32
            for array, value in zip(rule, (s.temperature, top_k, s.top_p, s.seed % 2**32)):
                array[i] = value
            forbidden[i, special.image] = not s.images
        fields = self._fields({i: min(int(left[i]), CHUNK) for i in answers})
        self._context, after, tokens = self.programs.decode(
            self.params, fields, self._context, place, left, rule, forbidden
        )
        return np.asarray(tokens), np.asarray(after) - place

    def _read(self, answer: Answer, column: np.ndarray, written: int) -> Said:
        """Takes the tokens of a chunk, of which `written` are in the cache."""
        tokens = tuple(int(token) for token in column if token != text_sampling.NOTHING)
        said, stop = tokens[:written], tokens[written:]
        if stop and stop[0] in self.tokenizer.ends:
            answer.ended, stop = STOP, (self.tokenizer.eos,)  # as every answer ends in training
        answer.row.wrote([*said, *stop])
        answer.row.cached['text'] += written
        answer.left -= len(tokens)
        answer.wants_image = stop == (self.tokenizer.image,)
        if not (answer.ended or answer.wants_image) and min(answer.left, answer.row.left()) < 1:
            answer.ended = LENGTH
        return Said(said, ended=answer.ended)
