"""arrayrecord.py: files that tensorflow_datasets wrote are read by record, without TensorFlow."""

import io
import os
import sys

import numpy as np
import pytest
from PIL import Image

from rf_jax.data import source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime.errors import UserError

MANY = 10**6
COUNT = 40


def encoded(number):
    file = io.BytesIO()
    Image.new('RGB', (16, 24 + number), (number, 9, 200)).save(file, 'PNG')
    return file.getvalue()


def words(number):
    return [f'picture {number}', 'a cat'][: 1 + number % 2]


def example(number):
    if number == 5:
        return {'image': io.BytesIO(encoded(number)), 'captions': []}
    return {'image': io.BytesIO(encoded(number)), 'captions': words(number)}


def prepare(tfds, name, features, splits, directory):
    """As a user's own builder would; it is then read by its path alone."""
    methods = {
        'VERSION': tfds.core.Version('1.0.0'),
        '_info': lambda self: tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        ),
        '_split_generators': lambda self, _: {
            split: enumerate(examples) for split, examples in splits.items()
        },
        '_generate_examples': lambda self: None,
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), methods)
    builder(data_dir=directory, file_format='array_record').download_and_prepare()
    return directory / name.lower() / '1.0.0'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    tfds = pytest.importorskip('tensorflow_datasets')
    image = tfds.features.Image(shape=(None, None, 3), encoding_format='png')
    features = {'image': image, 'captions': tfds.features.Sequence(tfds.features.Text())}
    splits = {
        'train': [example(n) for n in range(COUNT)],
        'test': [example(n) for n in range(3)],
    }
    return prepare(tfds, 'Captioned', features, splits, tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train([text for n in range(COUNT) for text in words(n)], 300)


def opened(path, tokenizer):
    (source,) = source_list.build(f'arrayrecord:{path}', MANY)
    return source, source.open(tokenizer, 1)


def test_records_are_read_at_random(folder, tokenizer):
    for _ in range(2):  # the second time from the index that was kept
        source, shards = opened(f'{folder}/*-train.array_record*', tokenizer)
        assert len(shards['captions']) == COUNT - 1 and source.skipped == {'empty caption': 1}
    kept = [n for n in range(COUNT) if n != 5]
    for row in np.random.default_rng(0).permutation(COUNT - 1):
        found, number = shards['captions'].read(row), kept[row]
        assert (found.captions, found.images) == (tuple(words(number)), (encoded(number),))
        size = shards['captions'].samples(np.array([row]))[0]
        assert (size['height'], size['width']) == (24 + number, 16)
    assert {'picture 2', 'a cat'} <= set(source.texts(10))
    assert 'tensorflow' not in sys.modules


def test_conversations_and_captions_of_one_record(tmp_path, tokenizer):
    tfds = pytest.importorskip('tensorflow_datasets')
    image = tfds.features.Image(shape=(None, None, 3), encoding_format='png')
    message = {'role': tfds.features.Text(), 'content': tfds.features.Text()}
    features = {
        'image': image,
        'label': tfds.features.ClassLabel(names=['grey_cat', 'dog']),
        'messages': tfds.features.Sequence(message),
    }
    said = [{'role': 'user', 'content': '<image>what?'}, {'role': 'assistant', 'content': 'a cat'}]
    found = [
        {'image': io.BytesIO(encoded(n)), 'label': n, 'messages': said if n else []}
        for n in range(2)
    ]
    path = prepare(tfds, 'Both', features, {'train': found}, tmp_path)
    source, shards = opened(path, tokenizer)
    assert [shards['captions'].read(n).captions for n in range(2)] == [('grey cat',), ('dog',)]
    (talk,) = (shards['conversations'].read(n) for n in range(len(shards['conversations'])))
    assert talk.images == (encoded(1),) and talk.messages[1].text == 'a cat'
    assert source.skipped == {'malformed': 1}


def test_damage_is_one_line(folder, tokenizer, tmp_path):
    (path,) = folder.glob('*-train.array_record*-00001')
    copy = tmp_path / path.name
    with pytest.raises(UserError, match=r'needs the features\.json that tensorflow_datasets'):
        copy.write_bytes(path.read_bytes())
        opened(copy, tokenizer)
    (tmp_path / 'features.json').write_bytes((folder / 'features.json').read_bytes())
    for length in (path.stat().st_size // 2, 0):
        copy.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match='is damaged, truncated or no ArrayRecord file'):
            opened(copy, tokenizer)
    copy.write_bytes(path.read_bytes())
    _, shards = opened(copy, tokenizer)
    os.remove(copy)
    with pytest.raises(UserError, match='is gone since the start of the run'):
        shards['captions'].read(0)


def test_a_split_or_a_bucket_must_be_clear(folder):
    with pytest.raises(UserError, match=r'several splits, captioned-test, captioned-train: name'):
        source_list.build(f'arrayrecord:{folder}', MANY)
    with pytest.raises(UserError, match='0 of 0 shards are missing'):
        source_list.build(f'arrayrecord:{folder}/*none.array_record*', MANY)
