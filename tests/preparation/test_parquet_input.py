"""Parquet as pyarrow and Hugging Face's datasets write it: every row becomes a sample."""

import json
from collections import Counter

import pyarrow as pa
import pytest
from prepare_inputs import caption, encoded, keys, picture, prepare, shards
from pyarrow import parquet as pq

from rf_jax.runtime.errors import UserError

pytest.importorskip('apache_beam')


def columns_of_pyarrow(numbers):
    return {
        'image': [{'bytes': encoded(picture(n)), 'path': None} for n in numbers],
        'caption': [caption(n) for n in numbers],
        'id': [f'{n:09d}' for n in numbers],
    }


def test_parquet_of_pyarrow_with_captions(tmp_path):
    pq.write_table(
        pa.table(columns_of_pyarrow(range(70))), tmp_path / '0.parquet', row_group_size=30
    )
    plain = columns_of_pyarrow(range(70, 100))
    plain = {
        'jpg': [i['bytes'] for i in plain['image']],
        'TEXT': plain['caption'],
        'key': plain['id'],
    }
    pq.write_table(pa.table(plain), tmp_path / '1.parquet')
    several = {'images': [[encoded(picture(n))] for n in range(100, 110)],
               'captions': [[caption(n), 'another'] for n in range(100, 110)],
               'id': [f'{n:09d}' for n in range(100, 110)]}  # fmt: skip
    pq.write_table(pa.table(several), tmp_path / '2.parquet')
    found = prepare(f'parquet:{tmp_path}/*.parquet', tmp_path / 'set')
    assert sorted(keys(tmp_path / 'set', found)) == [f'{n:09d}' for n in range(110)]
    opened = shards(tmp_path / 'set', found)
    for number in range(0, 110, 10):
        sample = opened.read(number)
        assert sample.captions[0] == caption(int(sample.key))
        assert len(sample.captions) == 1 + (int(sample.key) >= 100)


def test_parquet_with_messages(tmp_path):
    def row(n, as_text):
        messages = [
            {'role': 'user', 'content': f'<image> what is {caption(n)}?'},
            {'role': 'assistant', 'content': f'{n}'},
        ]
        return json.dumps(messages) if as_text else messages

    for file, as_text in enumerate([False, True]):
        table = {
            'images': [[{'bytes': encoded(picture(n)), 'path': 'x'}] for n in range(20)],
            'messages': [row(n, as_text) for n in range(20)],
        }
        pq.write_table(pa.table(table), tmp_path / f'{file}.parquet')
    found = prepare(f'parquet:{tmp_path}/*.parquet', tmp_path / 'set')
    opened = shards(tmp_path / 'set', found, 'conversations')
    assert Counter(opened.read(n).messages[1].text for n in range(40)) == dict.fromkeys(
        map(str, range(20)), 2
    )


def test_parquet_without_picture_or_text_names_its_columns(tmp_path):
    for columns, missing in [
        ({'url': ['a'], 'caption': ['b']}, 'no column of image;'),
        ({'image': [b'x'], 'score': [1.0]}, 'no column of caption, text or messages;'),
    ]:
        pq.write_table(pa.table(columns), tmp_path / '0.parquet')
        with pytest.raises(UserError, match=missing) as error:
            prepare(f'parquet:{tmp_path}', tmp_path / 'set')
        assert all(name in str(error.value) for name in columns)


def written(path, **columns):
    """Two rows with images; captions as given, or 'cat' and 'dog'."""
    images = {'image': [encoded(picture(n)) for n in range(2)], 'id': ['0', '1']}
    captions = {} if columns.keys() & {'caption', 'captions'} else {'caption': ['cat', 'dog']}
    pq.write_table(pa.table(images | captions | columns), path / '0.parquet')


def prepared(path):
    """Samples by key."""
    found = prepare(f'parquet:{path}/0.parquet', path / 'set')
    opened = shards(path / 'set', found)
    return {sample.key: sample for sample in map(opened.read, range(len(opened)))}


@pytest.mark.parametrize('column', ['caption', 'captions'])
@pytest.mark.parametrize(
    ('text', 'captions'),
    [
        (
            '{"caption_0": "a cat", "caption_1": null, "caption_2": " ", "b": "two"}',
            ['a cat', 'two'],
        ),
        (' ["a", "b"]', ['a', 'b']),
        ('[red] a cat', ['[red] a cat']),
        ('{"size": 3}', ['{"size": 3}']),
        ('[' * 100_000, ['[' * 100_000]),
    ],
)
def test_captions_in_json(tmp_path, column, text, captions):
    """As BAGEL's; what is no list of strings is a caption itself."""
    written(tmp_path, **{column: [text, '{}']})
    assert {key: list(s.captions) for key, s in prepared(tmp_path).items()} == {'0': captions}


@pytest.mark.parametrize(
    ('column', 'values'),
    [
        ('tags', [[1], [2]]),
        ('kind', [3, 4]),
        ('questions', [['what?'], ['who?']]),
        ('conversations', ['no JSON', '{"a": 1}']),
        ('messages', [5, 6]),
        ('messages', [[{'role': 'user', 'content': 'alone'}]] * 2),
    ],
)
def test_a_column_that_cannot_be_used_costs_no_sample(tmp_path, caplog, column, values):
    written(tmp_path, **{column: values})
    found = prepared(tmp_path)
    assert {key: s.captions for key, s in found.items()} == {'0': ('cat',), '1': ('dog',)}
    assert f'without fields that cannot be used: {column} (of 2)' in caplog.text


def test_nulls_in_lists_and_empty_conversations_cost_nothing(tmp_path, caplog):
    pair = {'question': 'what?', 'answer': 'a cat'}
    written(
        tmp_path,
        captions=[['cat', None], [None, 'dog']],
        tags=[['a', None], None],
        questions=[[None, pair], []],
        conversations=pa.array([[], None], pa.list_(pa.struct([('from', pa.string())]))),
    )
    found = prepared(tmp_path)
    assert {key: s.captions for key, s in found.items()} == {'0': ('cat',), '1': ('dog',)}
    assert found['0'].tags == ('a',) and found['0'].questions == (('what?', 'a cat'),)
    assert 'cannot be used' not in caplog.text


def test_parquet_of_datasets(tmp_path):
    datasets = pytest.importorskip('datasets')
    images = [{'bytes': encoded(picture(n)), 'path': None} for n in range(20)]
    files = [tmp_path / f'{n}.jpg' for n in range(20, 30)]
    for n, file in enumerate(files, 20):
        file.write_bytes(encoded(picture(n)))
    for name, first, column in (('a', 0, images), ('b', 20, list(map(str, files)))):
        numbers = range(first, first + len(column))
        columns = {'image': column, 'caption': [caption(n) for n in numbers]}
        columns['id'] = [f'{n:09d}' for n in numbers]
        made = datasets.Dataset.from_dict(columns).cast_column('image', datasets.Image())
        made.to_parquet(tmp_path / f'{name}.parquet')
    found = prepare(f'parquet:{tmp_path}/*.parquet', tmp_path / 'set')
    assert sorted(keys(tmp_path / 'set', found)) == [f'{n:09d}' for n in range(30)]


def test_images_beside_the_parquet_file_are_read_and_none_outside(tmp_path):
    folder = tmp_path / 'in'
    (folder / 'images').mkdir(parents=True)
    (folder / 'images/0.jpg').write_bytes(encoded(picture(0)))
    (tmp_path / 'secret.jpg').write_bytes(encoded(picture(1)))
    paths = ['images/0.jpg', 'images/no.jpg', '../secret.jpg', str(tmp_path / 'secret.jpg')]
    table = {'image': [{'bytes': None, 'path': path} for path in paths], 'text': ['a'] * 4}
    pq.write_table(pa.table(table), folder / '0.parquet')
    found = prepare(f'parquet:{folder}', tmp_path / 'set')
    assert found.samples('captions') == 1 and found.left_out == {'bad image': 3}
    assert keys(tmp_path / 'set', found) == ['0']


def test_a_truncated_parquet_file_is_one_error(tmp_path):
    pq.write_table(pa.table(columns_of_pyarrow(range(9))), tmp_path / '0.parquet')
    data = (tmp_path / '0.parquet').read_bytes()
    (tmp_path / '0.parquet').write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r'0\.parquet is damaged, truncated or no Parquet'):
        prepare(f'parquet:{tmp_path}', tmp_path / 'set')
