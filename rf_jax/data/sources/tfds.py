"""Any TensorFlow Datasets set with images and text, read from ArrayRecord without TensorFlow."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import PIL

from rf_jax.data.image_ops import BadImage, header_size, read_rgb
from rf_jax.data.records import Record, Skips, Source, clean
from rf_jax.data.sources.metadata_cache import cached_scan
from rf_jax.runtime.errors import UserError

# Names of the feature that says what an image shows, the most informative first.
_WORDS = ('captions', 'caption', 'text', 'sentences', 'sentence', 'description', 'title', 'label')


class TfdsSource(Source):
    """`tfds:name[/config][:split]`, split 'train' by default; TFDS_DATA_DIR is honoured.

    The set needs a features.Image of uint8 and a caption: a text, several texts, or a ClassLabel,
    whose names become captions. For a large set, sizes and captions are read once and cached beside
    it; examples without a caption or a valid image are skipped and counted in `.skipped`. Raises
    UserError.
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
        if self._image is None or words is None:
            missing = 'image' if self._image is None else 'caption, text or label'
            raise UserError(
                f'data.sources: {self.name} has no {missing}; its features are '
                + ', '.join(f'{key}: {type(value).__name__}' for key, value in features.items())
            )
        # Encoded bytes: their header gives the size, and decoding is left to image_ops.py.
        self._data = self._load(tfds, spec, decoders={self._image: tfds.decode.SkipDecoding()})
        self._scan(words, self._identity(info, key), info.data_dir)

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

    def _identity(self, info: Any, key: str) -> str:
        """Everything that sizes and captions depend on, except the examples themselves."""
        splits = [(s.name, int(s.num_bytes), s.shard_lengths) for s in info.splits.values()]
        # The names of a ClassLabel are stored in a separate file.
        labels = getattr(info.features[key], 'names', ())
        asked = f'{self.name}, features {self._image} and {key}, {splits}, {labels}'
        return f'{info.full_name}, {asked}, Pillow {PIL.__version__}'

    def _scan(self, words: Callable[[dict], Iterable[str]], key: str, folder: str) -> None:
        def read(i):
            example = self._data[i]
            captions = tuple(text for text in map(clean, words(example)) if text)
            try:
                return captions, header_size(example[self._image])
            except BadImage as error:
                return captions, str(error)

        found = cached_scan(self.name, key, folder, len(self._data), read)
        skips = Skips()
        self._index: list[int] = []
        self._records: list[Record] = []
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
        self.skipped = skips.counts
        if not self._records:
            raise UserError(f'data.sources: {self.name} has no usable example; skipped: {skips}')
        skips.log(self.name, len(self))


def _image_feature(tfds, features) -> str | None:
    names = [
        key
        for key, feature in features.items()
        if isinstance(feature, tfds.features.Image)
        and not isinstance(feature, tfds.features.LabeledImage)
        and feature.np_dtype == np.uint8
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
