"""Any TensorFlow Datasets set with images and text, read from ArrayRecord without TensorFlow."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL

from rf_jax.data import messages
from rf_jax.data.image_ops import BadImage, header_size, read_rgb
from rf_jax.data.messages import Message
from rf_jax.data.records import Record, Skips, Source
from rf_jax.data.sources import conversation_file, tfds_features
from rf_jax.data.sources.metadata_cache import cached_scan
from rf_jax.runtime.errors import UserError


@dataclass(frozen=True)
class TfdsConversation:
    """A `records.Conversation` whose images are those of one example."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]
    encoded: Callable[[], Sequence[bytes]]
    max_pixels: int

    def image(self, number: int, target=None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self.encoded()[number], self.max_pixels, target)


class TfdsSource(Source):
    """`tfds:name[/config][:split]`, split 'train' by default; TFDS_DATA_DIR is honoured.

    The set needs a features.Image of uint8 and a caption: a text, several texts, or a ClassLabel,
    whose names become captions. Or conversations: a Sequence `messages` of {role, content} or
    `conversations` of {from, value}, with `images` or `image` for `<image>` marks. It may have
    both. For a large set, sizes and texts are read once and cached beside it; examples that cannot
    be used are skipped and counted in `.skipped`. Raises UserError.
    """

    caches_metadata = True

    def __init__(self, spec: str, max_pixels: int):
        self.name = f'tfds:{spec}'
        self._max_pixels = max_pixels
        info = open_set(spec).dataset_info
        self._features = tfds_features.find(tfds(), info.features, self.name)
        # Encoded bytes: their header gives the size, and decoding is left to image_ops.py.
        self._data = open_set(spec, decoders=self._features.decoders)
        self._index: list[int] = []
        self._records: list[Record] = []
        self.conversations: list[TfdsConversation] = []
        skips = Skips()
        found = self._features
        if found.captioned:
            self._scan(self._identity(info, found.image, found.words), info.data_dir, skips)
        if found.talk:
            identity = self._identity(info, found.images, found.talk)
            self._scan_conversations(identity, info.data_dir, skips)
        self.skipped = skips.counts
        kept = len(self) + len(self.conversations)
        if not kept:
            raise UserError(f'data.sources: {self.name} has no usable example; skipped: {skips}')
        skips.log(self.name, kept)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def image(self, i: int, target=None) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self._data[self._index[i]][self._features.image], self._max_pixels, target)

    def _identity(self, info: Any, image: str | None, key: str) -> str:
        """Everything that sizes and texts depend on, except the examples themselves."""
        splits = [(s.name, int(s.num_bytes), s.shard_lengths) for s in info.splits.values()]
        labels = self._features.names if key == self._features.words else ()
        asked = f'{self.name}, features {image} and {key}, {splits}, {labels}'
        return f'{info.full_name}, {asked}, Pillow {PIL.__version__}'

    def _scan(self, key: str, folder: str, skips: Skips) -> None:
        def read(i):
            example = self._data[i]
            return self._features.captions(example), _size(example[self._features.image])

        found = cached_scan(self.name, key, folder, len(self._data), read)
        for i, (captions, size) in enumerate(found):
            if isinstance(size, str):
                skips.add('bad image', f'example {i}: {size}')
            elif size[0] * size[1] > self._max_pixels:
                skips.add('more than data.max_pixels', f'example {i}')
            elif not captions:
                skips.add('empty caption', f'example {i}')
            else:
                self._index.append(i)
                self._records.append(Record(*size, captions=captions))

    def _scan_conversations(self, key: str, folder: str, skips: Skips) -> None:
        features = self._features

        def images(i):
            return features.encoded(self._data[i])

        def read(i):
            example = self._data[i]
            sizes = tuple(map(_size, features.encoded(example)))
            return (json.dumps(features.turns(example)),), sizes

        found = cached_scan(self.name, key, folder, len(self._data), read)
        for i, ((turns,), sizes) in enumerate(found):
            names = [f'image {n}' for n in range(len(sizes))]
            look = partial(_look, dict(zip(names, sizes)))
            try:
                parsed = messages.entry({features.talk: json.loads(turns), 'images': names})
                renumbered, shown, _ = conversation_file.numbered(parsed, look, self._max_pixels)
            except BadImage as error:
                skips.add(conversation_file.BAD_IMAGE, f'example {i}: {error}')
            except ValueError as error:
                skips.add(conversation_file.MALFORMED, f'example {i}: {error}')
            else:
                self.conversations.append(
                    TfdsConversation(renumbered, shown, partial(images, i), self._max_pixels)
                )


def open_set(spec: str, **options) -> Sequence[dict]:
    """The examples of `name[/config][:split]`, with their `dataset_info`. Raises UserError."""
    name, _, split = spec.partition(':')
    directory = os.environ.get('TFDS_DATA_DIR') or None
    try:
        return tfds().data_source(name, split=split or 'train', data_dir=directory, **options)
    except UserError:
        raise
    except Exception as error:  # thousands of builders raise all kinds of errors
        reason = ' '.join(str(error).split())[:160]
        raise UserError(
            f'data.sources: tfds:{spec} cannot be opened: {type(error).__name__}: {reason}. '
            'Expected tfds:name[/config][:split]; TFDS_DATA_DIR is the folder of the data sets'
        ) from error


def tfds():
    """The module, which takes a second to import and is an optional dependency."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "data.sources: tfds: needs tensorflow_datasets: pip install 'rf_jax[tfds]'"
        ) from error
    return tensorflow_datasets


def _size(encoded: bytes) -> tuple[int, int] | str:
    """(height, width) from the header, or what is wrong."""
    try:
        return header_size(encoded)
    except BadImage as error:
        return str(error)


def _look(sizes: dict, name: str) -> tuple[None, tuple[int, int]]:
    """As `conversation_file.Look`, for sizes or errors that are known already."""
    if isinstance(sizes[name], str):
        raise BadImage(sizes[name])
    return None, tuple(sizes[name])
