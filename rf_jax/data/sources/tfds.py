"""Any TensorFlow Datasets set with images and text, read from ArrayRecord without TensorFlow."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL

from rf_jax.data import messages
from rf_jax.data.image_ops import BadImage, header_size, read_rgb
from rf_jax.data.messages import Message
from rf_jax.data.records import Record, Skips, Source, clean
from rf_jax.data.sources import conversation_file
from rf_jax.data.sources.metadata_cache import cached_scan
from rf_jax.runtime.errors import UserError

# Names of the feature that says what an image shows, the most informative first.
_WORDS = ('captions', 'caption', 'text', 'sentences', 'sentence', 'description', 'title', 'label')
# Features that hold a conversation, and the fields of a message, as in data/messages.py.
_CONVERSATIONS = {'messages': ('role', 'content'), 'conversations': ('from', 'value')}
_IMAGES = ('images', 'image')  # features that hold its images, the first one found


@dataclass(frozen=True)
class TfdsConversation:
    """A `records.Conversation` whose images are those of one example."""

    messages: tuple[Message, ...]
    sizes: tuple[tuple[int, int], ...]
    encoded: Callable[[], Sequence[bytes]]
    max_pixels: int

    def image(self, number: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self.encoded()[number], self.max_pixels)


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
        try:
            import tensorflow_datasets as tfds  # takes a second, and is an optional dependency
        except ImportError as error:
            raise UserError(
                f"data.sources: {self.name} needs tensorflow_datasets: pip install 'rf_jax[tfds]'"
            ) from error
        # A stored set lists its features in arbitrary order.
        info = self._load(tfds, spec).dataset_info
        features = dict(sorted(info.features.items()))
        self._image = _image_feature(tfds, features)
        key, words = _word_reader(tfds, features)
        captioned = self._image is not None and words is not None
        talk = _conversation_feature(tfds, features)
        if not captioned and not talk:
            missing = 'image' if self._image is None else 'caption, text or label'
            raise UserError(
                f'data.sources: {self.name} has no {missing}, nor conversations (messages of role '
                'and content, or conversations of from and value); its features are '
                + ', '.join(f'{key}: {type(value).__name__}' for key, value in features.items())
            )
        # Encoded bytes: their header gives the size, and decoding is left to image_ops.py.
        encoded = {name: _Encoded() for name in features if _has_images(tfds, features[name])}
        self._data = self._load(tfds, spec, decoders=encoded)
        self._index: list[int] = []
        self._records: list[Record] = []
        self.conversations: list[TfdsConversation] = []
        skips = Skips()
        if captioned:
            self._scan(words, self._identity(info, self._image, key), info.data_dir, skips)
        if talk:
            name = next((name for name in _IMAGES if name in encoded), None)
            self._scan_conversations(
                *(talk, name, self._identity(info, name, talk), info.data_dir, skips)
            )
        self.skipped = skips.counts
        kept = len(self) + len(self.conversations)
        if not kept:
            raise UserError(f'data.sources: {self.name} has no usable example; skipped: {skips}')
        skips.log(self.name, kept)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, i: int) -> Record:
        return self._records[i]

    def image(self, i: int) -> np.ndarray:
        """uint8 [h, w, 3]; raises BadImage."""
        return read_rgb(self._data[self._index[i]][self._image], self._max_pixels)

    def _load(self, tfds, spec: str, **options):
        name, _, split = spec.partition(':')
        directory = os.environ.get('TFDS_DATA_DIR') or None
        try:
            return tfds.data_source(name, split=split or 'train', data_dir=directory, **options)
        except Exception as error:  # thousands of builders raise all kinds of errors
            reason = ' '.join(str(error).split())[:160]
            raise UserError(
                f'data.sources: {self.name} cannot be opened: {type(error).__name__}: {reason}. '
                'Expected tfds:name[/config][:split]; TFDS_DATA_DIR is the folder of the data sets'
            ) from error

    def _identity(self, info: Any, image: str | None, key: str) -> str:
        """Everything that sizes and texts depend on, except the examples themselves."""
        splits = [(s.name, int(s.num_bytes), s.shard_lengths) for s in info.splits.values()]
        # The names of a ClassLabel are stored in a separate file.
        labels = getattr(info.features[key], 'names', ())
        asked = f'{self.name}, features {image} and {key}, {splits}, {labels}'
        return f'{info.full_name}, {asked}, Pillow {PIL.__version__}'

    def _scan(
        self, words: Callable[[dict], Iterable[str]], key: str, folder: str, skips: Skips
    ) -> None:
        def read(i):
            example = self._data[i]
            captions = tuple(text for text in map(clean, words(example)) if text)
            return captions, _size(example[self._image])

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

    def _scan_conversations(
        self, talk: str, image: str | None, key: str, folder: str, skips: Skips
    ) -> None:
        """Reads the feature `talk`, whose images are in the feature `image`, if any."""
        fields = _CONVERSATIONS[talk]

        def images(i):
            return _several(self._data[i][image]) if image else ()

        def read(i):
            example = self._data[i]
            # A Sequence of dicts is stored as a dict of sequences.
            columns = (map(_text, example[talk][field]) for field in fields)
            turns = [dict(zip(fields, turn)) for turn in zip(*columns)]
            encoded = _several(example[image]) if image else ()
            return (json.dumps(turns),), tuple(map(_size, encoded))

        found = cached_scan(self.name, key, folder, len(self._data), read)
        for i, ((turns,), sizes) in enumerate(found):
            names = [f'image {n}' for n in range(len(sizes))]
            look = partial(_look, dict(zip(names, sizes)))
            try:
                parsed = messages.entry({talk: json.loads(turns), 'images': names})
                renumbered, shown, _ = conversation_file.numbered(parsed, look, self._max_pixels)
            except BadImage as error:
                skips.add(conversation_file.BAD_IMAGE, f'example {i}: {error}')
            except ValueError as error:
                skips.add(conversation_file.MALFORMED, f'example {i}: {error}')
            else:
                self.conversations.append(
                    TfdsConversation(renumbered, shown, partial(images, i), self._max_pixels)
                )


class _Encoded:
    """A decoder that leaves images as they are stored; tfds' own cannot skip those of a Sequence
    without TensorFlow.
    """

    def setup(self, *, feature: Any) -> None:
        """Called by tfds."""

    def decode_example_np(self, example):
        return example

    def decode_batch_example_np(self, examples):
        return examples


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


def _several(images: bytes | Sequence[bytes]) -> Sequence[bytes]:
    return [images] if isinstance(images, bytes) else images


def _has_images(tfds, feature: Any) -> bool:
    """Whether it is an image of uint8, or a Sequence of them."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return (
        isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
        and feature.np_dtype == np.uint8
    )


def _conversation_feature(tfds, features) -> str | None:
    """The feature that holds conversations, a Sequence of {role: Text, content: Text} or so."""
    for key, fields in _CONVERSATIONS.items():
        feature = features.get(key)
        nested = isinstance(feature, tfds.features.Dataset)  # a Sequence in name only
        if isinstance(feature, tfds.features.Sequence) and not nested:
            inner = feature.feature
            if isinstance(inner, tfds.features.FeaturesDict) and all(
                field in inner and isinstance(inner[field], tfds.features.Text) for field in fields
            ):
                return key
    return None


def _image_feature(tfds, features) -> str | None:
    names = [
        key
        for key, feature in features.items()
        if _has_images(tfds, feature) and not isinstance(feature, tfds.features.Sequence)
    ]
    return 'image' if 'image' in names else next(iter(names), None)


def _word_reader(tfds, features) -> tuple[str, Callable[[dict], Iterable[str]] | None]:
    """(the most informative feature, function from an example to its captions), or ('', None)."""
    readers = {key: _reader(tfds, key, feature) for key, feature in features.items()}
    named = [key for key in _WORDS if readers.get(key)]
    # A class label always describes the image; other text may be a file name or a URL.
    labels = [
        key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)
    ]
    key = next(iter(named + labels), '')
    return key, readers.get(key)


def _reader(tfds, key: str, feature: Any) -> Callable[[dict], Iterable[str]] | None:
    if isinstance(feature, tfds.features.ClassLabel):
        return lambda example: _class_name(feature, int(example[key]))
    if isinstance(feature, tfds.features.Text):
        return lambda example: (_text(example[key]),)
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.Text):
            return lambda example: map(_text, example[key])
        if isinstance(inner, tfds.features.FeaturesDict):  # COCO: captions of {id, text}
            for name in _WORDS:
                if name in inner and isinstance(inner[name], tfds.features.Text):
                    return lambda example: map(_text, example[key][name])
    return None


def _class_name(feature: Any, label: int) -> tuple[str, ...]:
    if label < 0:  # marks an example without a label, as in some test splits
        return ()
    return (feature.int2str(label).replace('_', ' '),)


def _text(value: bytes | str) -> str:
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else str(value)
