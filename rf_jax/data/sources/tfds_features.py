"""Which features of a TensorFlow Datasets set hold images, captions and conversations."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rf_jax.data.records import clean
from rf_jax.runtime.errors import UserError

# Names of the feature that says what an image shows, the most informative first.
_WORDS = ('captions', 'caption', 'text', 'sentences', 'sentence', 'description', 'title', 'label')
# Features that hold a conversation, and the fields of a message, as in data/messages.py.
_CONVERSATIONS = {'messages': ('role', 'content'), 'conversations': ('from', 'value')}
_IMAGES = ('images', 'image')  # features that hold its images, the first one found


@dataclass(frozen=True)
class Features:
    """Names of features. `image`, `words`: of a captioned image. `talk`, `images`: of a
    conversation; `images` is None if it has none. `decoders` leave images encoded.
    """

    decoders: dict[str, Any]
    image: str | None
    words: str
    talk: str | None
    images: str | None
    read_words: Callable[[dict], Iterable[str]] | None
    names: Sequence[str] = ()  # of the classes, where `words` is a label

    @property
    def captioned(self) -> bool:
        return self.image is not None and self.read_words is not None

    def kinds(self) -> list[bool]:
        """Whether each sample of an example is a conversation."""
        return [False] * self.captioned + [True] * bool(self.talk)

    def captions(self, example: dict) -> tuple[str, ...]:
        """Cleaned, without empty ones."""
        return tuple(text for text in map(clean, self.read_words(example)) if text)

    def turns(self, example: dict) -> list[dict[str, str]]:
        """The messages of a conversation, as in its JSON."""
        fields = _CONVERSATIONS[self.talk]
        # A Sequence of dicts is stored as a dict of sequences.
        columns = (map(_text, example[self.talk][field]) for field in fields)
        return [dict(zip(fields, turn)) for turn in zip(*columns)]

    def encoded(self, example: dict) -> Sequence[bytes]:
        """The images of a conversation."""
        found = example[self.images] if self.images else ()
        return [found] if isinstance(found, bytes) else found


def find(tfds, features: Any, name: str) -> Features:
    """What can be used of the features of a set, a tfds.features.FeaturesDict. `name`: of the
    source, in the UserError that is raised if there is nothing.
    """
    features = dict(sorted(features.items()))  # a stored set lists them in arbitrary order
    image = _image_feature(tfds, features)
    words, read_words = _word_reader(tfds, features)
    talk = _conversation_feature(tfds, features)
    if not talk and (image is None or read_words is None):
        missing = 'image' if image is None else 'caption, text or label'
        raise UserError(
            f'data.sources: {name} has no {missing}, nor conversations (messages of role '
            'and content, or conversations of from and value); its features are '
            + ', '.join(f'{key}: {type(value).__name__}' for key, value in features.items())
        )
    decoders = {key: _Encoded() for key in features if _has_images(tfds, features[key])}
    images = next((key for key in _IMAGES if key in decoders), None)
    # The names of a ClassLabel are stored in a separate file.
    labels = getattr(features.get(words), 'names', ())
    return Features(decoders, image, words, talk, images, read_words, labels)


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
