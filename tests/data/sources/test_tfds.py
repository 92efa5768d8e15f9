"""tfds.py: a prepared TFDS set gives records and images without TensorFlow."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image
from tfds_writing import prepare

from rf_jax.data import source_list
from rf_jax.data.records import Record
from rf_jax.data.sources import metadata_cache
from rf_jax.data.sources import tfds as source_tfds
from rf_jax.runtime.errors import UserError

MANY = 10**6


def encoded(height: int, width: int) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), height, np.uint8)).save(buffer, 'PNG')
    return io.BytesIO(buffer.getvalue())


@pytest.fixture(scope='module')
def tfds_sets(tmp_path_factory):
    tfds = pytest.importorskip('tensorflow_datasets')
    directory = tmp_path_factory.mktemp('tfds')
    image = tfds.features.Image(shape=(None, None, 3), encoding_format='png')
    labels = tfds.features.ClassLabel(names=['house_cat', 'dog'])
    prepare(
        *(tfds, 'Labelled', directory),
        tfds.features.FeaturesDict(
            {'file_name': tfds.features.Text(), 'image': image, 'label': labels}
        ),
        [
            {'file_name': f'{i}.png', 'image': encoded(20 + i, 30), 'label': label}
            for i, label in enumerate([0, 1, 1, -1, 0])
        ],
    )
    several = tfds.features.Sequence({'id': np.int64, 'text': tfds.features.Text()})
    prepare(
        *(tfds, 'Captioned', directory),
        tfds.features.FeaturesDict({'image': image, 'captions': several, 'label': labels}),
        [
            {'image': encoded(20, 30), 'captions': texts, 'label': 0}
            for texts in (
                [{'id': 1, 'text': ' é cat'}, {'id': 2, 'text': ''}, {'id': 3, 'text': 'two'}],
                [],
            )
        ],
    )
    prepare(
        *(tfds, 'Wordless', directory),
        tfds.features.FeaturesDict({'file_name': tfds.features.Text(), 'image': image}),
        [{'file_name': 'a', 'image': encoded(4, 4)}],
    )
    prepare(
        *(tfds, 'Blind', directory),
        tfds.features.FeaturesDict({'text': tfds.features.Text()}),
        [{'text': 'words'}],
    )
    return directory


@pytest.fixture
def tfds_dir(tfds_sets, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tfds_sets))


@pytest.mark.usefixtures('tfds_dir')
def test_tfds_class_names_become_captions():
    source = source_list.build('tfds:labelled', max_pixels=23 * 30)[0]
    assert [source.record(i) for i in range(len(source))] == [
        Record(20, 30, ('house cat',)),
        Record(21, 30, ('dog',)),
        Record(22, 30, ('dog',)),
    ]
    assert source.skipped == {'empty caption': 1, 'more than data.max_pixels': 1}
    assert [int(source.image(i)[0, 0, 0]) for i in range(3)] == [20, 21, 22]
    assert 'tensorflow' not in sys.modules
    whole = source_list.build('tfds:labelled', MANY)[0]  # the fourth is skipped
    assert [int(whole.image(i)[0, 0, 0]) for i in range(len(whole))] == [20, 21, 22, 24]
    part = source_list.build('tfds:labelled:train[1:3]', MANY)[0]
    assert [part.record(i).height for i in range(len(part))] == [21, 22]
    assert (part.image(1) == 22).all()


@pytest.mark.usefixtures('tfds_dir')
def test_tfds_captions_are_preferred_to_labels():
    source = source_list.build('tfds:captioned', MANY)[0]
    assert len(source) == 1 and source.record(0).captions == ('é cat', 'two')
    assert source.skipped == {'empty caption': 1}


@pytest.mark.usefixtures('tfds_dir')
def test_tfds_errors_list_the_features():
    with pytest.raises(
        UserError, match=r'data\.sources.*no caption.*file_name: Text, image: Image'
    ):
        source_list.build('tfds:wordless', MANY)
    with pytest.raises(UserError, match=r'data\.sources.*no image.*text: Text'):
        source_list.build('tfds:blind', MANY)
    with pytest.raises(UserError, match=r'data\.sources: tfds:labelled:nosplit cannot be opened'):
        source_list.build('tfds:labelled:nosplit', MANY)
    with pytest.raises(UserError, match=r'data\.sources: tfds:no_such_set cannot be opened'):
        source_list.build('tfds:no_such_set', MANY)


@pytest.mark.usefixtures('tfds_dir')
def test_a_large_set_is_read_once(monkeypatch):
    """The second start reads sizes, captions and skipped entries from the cache."""
    monkeypatch.setattr(metadata_cache, '_MIN_COUNT', 0)
    for most, kept in ((MANY, 4), (23 * 30, 3)):
        first = source_list.build('tfds:labelled', most)[0]
        with monkeypatch.context() as blind:
            blind.setattr(source_tfds, 'header_size', lambda _: pytest.fail('read again'))
            again = source_list.build('tfds:labelled', most)[0]
        assert len(again) == len(first) == kept and again.skipped == first.skipped
        assert [again.record(i) for i in range(kept)] == [first.record(i) for i in range(kept)]
        assert [int(again.image(i)[0, 0, 0]) for i in range(3)] == [20, 21, 22]
    part = source_list.build('tfds:labelled:train[1:3]', MANY)[0]  # has a cache file of its own
    assert [part.record(i).height for i in range(len(part))] == [21, 22]


@pytest.mark.usefixtures('tfds_dir')
def test_new_class_names_invalidate_the_cache(monkeypatch, tfds_sets):
    monkeypatch.setattr(metadata_cache, '_MIN_COUNT', 0)
    assert source_list.build('tfds:labelled', MANY)[0].record(1).captions == ('dog',)
    (names,) = tfds_sets.glob('labelled/1.0.0/label.labels.txt')
    before = names.read_text()
    names.write_text(before.replace('dog', 'puppy'))
    renamed = source_list.build('tfds:labelled', MANY)[0].record(1).captions
    names.write_text(before)
    assert renamed == ('puppy',)


# One conversation each: its images by size, its turns in LLaVA's form, and why it is left out.
TALKS = [
    ([(20, 30), (4, 8)], [('human', '<image>\nwhat is é?'), ('gpt', 'a <image>')], None),
    ([], [('system', 'be brief'), ('human', 'hello'), ('gpt', 'hi')], None),
    ([(5, 6)], [('human', '<image> and'), ('gpt', 'a'), ('human', 'b'), ('gpt', ' c ')], None),
    ([(5, 6)], [('human', 'no mark'), ('gpt', 'a')], '1 images, but only 0 <image> marks'),
    ([], [('human', '<image>'), ('gpt', 'a')], 'more <image> marks'),
    ([], [('human', 'alone')], 'no message of the assistant'),
    ([], [], 'there are no messages'),
    ([], [('robot', 'a'), ('gpt', 'b')], "role 'robot'"),
    ([(40, 90)], [('human', '<image> a'), ('gpt', 'b')], 'more than data.max_pixels'),
    ([None], [('human', '<image> a'), ('gpt', 'b')], 'an image but text'),
]


def stored(size):
    """A PNG, or for None a file that is none."""
    return encoded(*size) if size else io.BytesIO(b'this is an apology, not an image')


@pytest.fixture(scope='module')
def talks(tfds_sets, tmp_path_factory):
    """The same conversations in TFDS sets and in a folder."""
    import tensorflow_datasets as tfds

    text, image = tfds.features.Text(), tfds.features.Image(shape=(None, None, 3))
    llava = tfds.features.Sequence({'from': text, 'value': text})
    openai = tfds.features.Sequence({'role': text, 'content': text})
    several = {'images': tfds.features.Sequence(image), 'conversations': llava, 'id': text}
    prepare(
        *(tfds, 'Talks', tfds_sets, tfds.features.FeaturesDict(several)),
        [
            {
                'images': [stored(size) for size in sizes],
                'conversations': [{'from': role, 'value': said} for role, said in turns],
                'id': 'one',
            }
            for sizes, turns, _ in TALKS
        ],
    )
    single = {'image': image, 'messages': openai, 'text': text, 'mask': image}
    prepare(
        *(tfds, 'SingleTalks', tfds_sets, tfds.features.FeaturesDict(single)),
        [
            {
                'image': encoded(5, 6),
                'messages': [{'role': 'user', 'content': '<image> what?'},
                             {'role': 'assistant', 'content': 'grey'}],
                'text': caption,
                'mask': stored(None),  # never looked at
            }
            for caption in ('a caption', '')
        ],
    )  # fmt: skip
    folder = tmp_path_factory.mktemp('talks')
    lines = []
    for number, (sizes, turns, _) in enumerate(TALKS):
        names = [f'{number}_{i}.png' for i in range(len(sizes))]
        for name, size in zip(names, sizes):
            (folder / name).write_bytes(stored(size).getvalue())
        said = [{'from': role, 'value': text} for role, text in turns]
        lines.append(json.dumps({'conversations': said, 'images': names}))
    (folder / 'conversations.jsonl').write_text('\n'.join(lines))
    return folder


@pytest.mark.usefixtures('tfds_dir')
def test_conversations_are_those_of_the_same_folder(talks, caplog):
    (folder,) = source_list.build(f'folder:{talks}', 2000)
    caplog.clear()
    with caplog.at_level('WARNING', logger='absl'):
        (source,) = source_list.build('tfds:talks', 2000)
    assert len(source) == 0 and len(source.conversations) == 3
    assert source.skipped == folder.skipped
    for found, same in zip(source.conversations, folder.conversations, strict=True):
        assert found.messages == same.messages and found.sizes == same.sizes
        for number, size in enumerate(same.sizes):
            assert found.image(number).shape == (*size, 3)
            np.testing.assert_array_equal(found.image(number), same.image(number))
    assert 'tensorflow' not in sys.modules
    said = caplog.text
    assert 'example 3: 1 images, but only 0' in said and 'example 8: image 0: more than' in said


@pytest.mark.usefixtures('tfds_dir')
@pytest.mark.parametrize('number', range(3, len(TALKS)))
def test_a_broken_conversation_is_named_as_in_a_folder(talks, number):
    """Alone in its split, so that the error says why."""
    with pytest.raises(UserError, match=f'no usable example.*example 0: .*{TALKS[number][2]}'):
        source_list.build(f'tfds:talks:train[{number}:{number + 1}]', 2000)


@pytest.mark.usefixtures('tfds_dir', 'talks')
def test_a_set_can_have_captions_and_conversations():
    (source,) = source_list.build('tfds:single_talks', MANY)
    assert len(source) == 1 and source.record(0) == Record(5, 6, ('a caption',))
    assert [each.sizes for each in source.conversations] == [((5, 6),)] * 2
    assert [message.role for message in source.conversations[0].messages] == ['user', 'assistant']
    assert source.conversations[1].image(0).shape == (5, 6, 3)
    assert source.skipped == {'empty caption': 1}


@pytest.mark.usefixtures('tfds_dir', 'talks')
def test_conversations_of_a_large_set_are_read_once(monkeypatch):
    monkeypatch.setattr(metadata_cache, '_MIN_COUNT', 0)
    for most, kept in ((2000, 3), (MANY, 4), (100, 2)):
        (first,) = source_list.build('tfds:talks', most)
        with monkeypatch.context() as blind:
            blind.setattr(source_tfds, 'header_size', lambda _: pytest.fail('read again'))
            (again,) = source_list.build('tfds:talks', most)
        assert len(first.conversations) == kept and again.skipped == first.skipped
        for found, same in zip(again.conversations, first.conversations, strict=True):
            assert (found.messages, found.sizes) == (same.messages, same.sizes)
        assert source_list.summary([again]) == source_list.summary([first])


def test_the_cache_belongs_to_one_data_set(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(metadata_cache, '_MIN_COUNT', 0)
    counted = []

    def read(i):
        counted.append(i)
        return (f'caption {i}',), (i, 2 * i) if i % 2 else 'no image'

    def asked(of='a set', count=4):
        counted.clear()
        found = metadata_cache.cached_scan('tfds:set', of, str(tmp_path), count, read)
        assert found == [read(i) for i in range(count)]
        return len(counted) - count  # without the examples counted above

    assert [asked(), asked()] == [4, 0]
    assert asked(of='another set') == 4 and asked(count=3) == 3
    assert asked() == 0  # the others have files of their own
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-9])  # truncated
    assert [asked(), asked()] == [4, 0] and 'scanning the data set again' in caplog.text
    assert all(file.suffix == '.gz' for file in tmp_path.iterdir())


def test_no_call_holds_the_interpreter_lock_for_the_whole_set(tmp_path, monkeypatch):
    """Parsing a text is a single call, during which no heartbeat can be sent."""
    count, sizes = 20_000, {'loads': [], 'dumps': []}

    def read(i):
        return (f'caption {i} of this set',), (64, 64)

    def loads(text, _loads=json.loads):
        sizes['loads'].append(len(text))
        return _loads(text)

    def dumps(tree, _dumps=json.dumps):
        sizes['dumps'].append(len(text := _dumps(tree)))
        return text

    monkeypatch.setattr(metadata_cache.json, 'loads', loads)
    monkeypatch.setattr(metadata_cache.json, 'dumps', dumps)
    first, again = (
        metadata_cache.cached_scan('a', 'b', str(tmp_path), count, read) for _ in range(2)
    )
    assert again == first and len(sizes['loads']) > 50
    assert max(sizes['loads'] + sizes['dumps']) < 20_000  # of 900 kB


def test_a_cache_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch, caplog):
    def full(path, content):
        pathlib.Path(path).write_bytes(content[:9])
        raise OSError('No space left on device')

    monkeypatch.setattr(metadata_cache, '_MIN_COUNT', 0)
    monkeypatch.setattr(type(metadata_cache.epath.Path(tmp_path)), 'write_bytes', full)
    for _ in range(2):
        found = metadata_cache.cached_scan(
            'tfds:set', 'a set', str(tmp_path), 1, lambda i: ((), 'bad')
        )
        assert found == [((), 'bad')] and not list(tmp_path.iterdir())
    assert 'No space left on device): every start will scan the whole data set' in caplog.text


def test_tfds_is_an_optional_dependency(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
    with pytest.raises(UserError, match=r"data\.sources.*pip install 'rf_jax\[tfds\]'"):
        source_list.build('tfds:mnist', MANY)
