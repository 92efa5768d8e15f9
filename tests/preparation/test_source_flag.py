"""Folders and TFDS sets as --source, several sources together, and sources that are not there."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
from prepare_inputs import caption, encoded, keys, picture, prepare, shards, write_tar
from tfds_writing import prepare as write_tfds

from rf_jax.preparation import source_flag, unit
from rf_jax.runtime.errors import UserError

pytest.importorskip('apache_beam')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(unit, '_SLICE', 7)
    root = tmp_path / 'folder'
    root.mkdir()
    for n in range(20):
        (root / f'{n:02d}.jpg').write_bytes(encoded(picture(n)))
    lines = [{'file': f'{n:02d}.jpg', 'caption': caption(n)} for n in range(20)]
    lines += [{'file': 'no.jpg', 'caption': 'x'}, {'file': '00.jpg', 'caption': ''}, {'a': 1}]
    lines[3]['questions'] = 'what?'
    (root / 'captions.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    talks = []
    for n in range(9):
        drawn = [{'type': 'image', 'image': f'{n:02d}.jpg'}]
        talks.append({'messages': [{'role': 'user', 'content': 'draw'},
                                   {'role': 'assistant', 'content': drawn}]})  # fmt: skip
    (root / 'conversations.jsonl').write_text('\n'.join(map(json.dumps, talks)))
    return root


def test_a_folder_in_slices(folder, tmp_path, caplog):
    out = tmp_path / 'set'
    found = prepare(f'folder:{folder}', out, size=64)  # larger than all: they stay as they are
    assert sorted(keys(out, found)) == [f'{n:02d}.jpg' for n in range(20)]
    assert found.left_out == {'bad image': 1, 'empty caption': 1, 'malformed': 1}
    assert 'without fields that cannot be used: questions (of 1)' in caplog.text
    talks = shards(out, found, 'conversations')
    images = sorted(talks.read(number).images[0] for number in range(9))
    assert images == sorted((folder / f'{n:02d}.jpg').read_bytes() for n in range(9))


def test_a_set_of_tfds_in_slices(tmp_path, monkeypatch):
    tfds = pytest.importorskip('tensorflow_datasets')
    monkeypatch.setattr(unit, '_SLICE', 7)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    features = tfds.features.FeaturesDict(
        {
            'image': tfds.features.Image(shape=(None, None, 3), encoding_format='png'),
            'captions': tfds.features.Sequence({'text': tfds.features.Text()}),
        }
    )
    examples = [
        {
            'image': io.BytesIO(encoded(picture(n), 'PNG')),
            'captions': [{'text': caption(n)}, {'text': f'no. {n}'}][: n % 3],
        }
        for n in range(20)
    ]
    write_tfds(tfds, 'Prepared', tmp_path, features, examples)
    out = tmp_path / 'set'
    found = prepare('tfds:prepared', out)
    opened = shards(out, found)
    read = {int(s.key): s for s in map(opened.read, range(len(opened)))}
    assert sorted(read) == [n for n in range(20) if n % 3]
    assert all(s.captions == (caption(n), f'no. {n}')[: n % 3] for n, s in read.items())
    assert found.left_out == {'empty caption': 7}


def test_several_sources_are_one_set(folder, tmp_path):
    write_tar(tmp_path / '0.tar', range(100, 130))
    out = tmp_path / 'set'
    found = prepare(f'folder:{folder},webdataset:{tmp_path}/0.tar', out)
    assert found.samples('captions') == 50


def test_units_are_the_same_wherever_the_input_lies(tmp_path):
    ids = []
    for name in ('here', 'there'):
        (tmp_path / name).mkdir()
        for number in range(3):
            write_tar(tmp_path / name / f'{number}.tar', range(number))
        ids.append([each.id for each in source_flag.units(f'webdataset:{tmp_path / name}')])
        pattern = f'webdataset:{tmp_path / name}/{{0..2}}.tar'
        assert ids[-1] == [each.id for each in source_flag.units(pattern)]
    assert ids[0] == ids[1] and len(set(ids[0])) == 3


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('', 'is empty'),
        ('wds:/a', "did you mean 'webdataset'|'wds' is not known"),
        ('webdataset:/no/0.tar', '/no/0.tar is missing'),
        ('webdataset:/no/*.tar', 'there is no such file'),
        ('folder:/no', 'neither captions.jsonl nor conversations.jsonl'),
        ('tfds:no_such_set', 'cannot be opened'),
    ],
)
def test_a_source_that_is_not_there_is_named(source, message):
    with pytest.raises(UserError, match=message):
        source_flag.units(source)


@pytest.mark.parametrize('kind', ['webdataset', 'parquet'])
def test_a_file_in_place_of_a_folder_is_named(kind, tmp_path):
    (tmp_path / 'file').touch()
    source = f'{kind}:{tmp_path}/file/0.tar'
    with pytest.raises(UserError, match=f'^--source={source}: .*/file/0.tar: Not a directory$'):
        source_flag.units(source)


@pytest.mark.parametrize('kind', ['webdataset', 'folder'])
def test_a_path_that_may_not_be_read_is_named(kind, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / 'captions.jsonl').write_text('{"file": "a.png", "caption": "a"}')
    monkeypatch.setattr(os, 'listdir', refuse)
    monkeypatch.setattr(Path, 'read_bytes', refuse)
    with pytest.raises(UserError, match=f'^--source={kind}:{tmp_path}.*: Permission denied$'):
        source_flag.units(f'{kind}:{tmp_path}')


def test_a_folder_in_place_of_the_settings_is_named(tmp_path):
    write_tar(tmp_path / '0.tar', range(3))
    (tmp_path / 'set/prepare.json').mkdir(parents=True)
    with pytest.raises(UserError, match=r'prepare\.json cannot be read: .*choose another --out'):
        prepare(f'webdataset:{tmp_path}/0.tar', tmp_path / 'set')


def test_a_listing_without_entries_is_named(tmp_path):
    (tmp_path / 'captions.jsonl').write_text('\n')
    with pytest.raises(UserError, match=f'^--source=folder:{tmp_path} has no samples'):
        source_flag.units(f'folder:{tmp_path}')


@pytest.mark.parametrize('kind', ['webdataset', 'parquet', 'folder', 'folder+links'])
def test_a_url_is_named_as_it_was_given(kind):
    with pytest.raises(UserError, match=r'^--source=https://a/b is a URL'):
        source_flag.with_absolute_paths(f'{kind}:https://a/b')


@pytest.mark.parametrize(
    ('source', 'hint'),
    [
        ('webdataset:/data/{a,b}.tar', True),
        ('folder:/cats, dogs and more', True),
        ('tfds:coco,no', False),
        ('wds:/data', False),
    ],
)
def test_a_comma_in_a_path_has_a_hint(source, hint):
    with pytest.raises(UserError, match='is not known') as error:
        source_flag.units(source)
    assert ('A comma within a path' in str(error.value)) == hint


def test_a_folder_without_files_of_its_own(tmp_path):
    (tmp_path / 'below').mkdir()
    (tmp_path / 'below/0.parquet').touch()
    with pytest.raises(UserError, match=r'the folder has no \*\.parquet, and those below'):
        source_flag.units(f'parquet:{tmp_path}')


def test_splits_in_one_folder_are_not_mixed(tmp_path):
    for name in ('test-0', 'train-00000-of-00002', 'train-00001-of-00002', 'trains'):
        (tmp_path / f'{name}.parquet').touch()
    with pytest.raises(UserError, match=r'several splits, test, train: .*/train\*\.parquet'):
        source_flag.units(f'parquet:{tmp_path}')
    counts = [len(source_flag.units(f'parquet:{tmp_path}/{n}.parquet')) for n in ('train-*', '*')]
    assert counts == [2, 4]
    (tmp_path / 'test-0.parquet').unlink()
    assert len(source_flag.units(f'parquet:{tmp_path}/')) == 3
