"""A prepared set has every usable sample of its input once, and says what it left out."""

import dataclasses
import errno
import filecmp
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from prepare_inputs import caption, encoded, keys, picture, prepare, shards, write_tar

from rf_jax.data import image_ops
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.shards import index, set_file, tar
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.preparation import cleaning, files, preparing, settings, source_flag
from rf_jax.preparation.settings import Settings
from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError

pytest.importorskip('apache_beam')


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tars')
    write_tar(folder / '0.tar', range(100), range(100, 130))
    write_tar(folder / '1.tar', range(200, 300))
    return folder


@pytest.fixture(scope='module')
def made(tars, tmp_path_factory):
    out = tmp_path_factory.mktemp('set')
    return out, prepare(f'webdataset:{tars}', out)


def test_every_sample_is_there_once_and_shuffled(made):
    out, found = made
    read = keys(out, found)
    expected = [f'{n:09d}' for n in [*range(100), *range(200, 300)]]
    assert sorted(read) == expected and read != expected
    assert sorted(keys(out, found, 'conversations')) == [f'{n:09d}' for n in range(100, 130)]
    # The two files are mixed: of the first half, about a half is from the first file.
    assert 30 < sum(key < '000000200' for key in read[:100]) < 70
    assert found.samples('captions') == 200 and not found.left_out
    assert not (out / 'cleaned').exists()


def test_equal_input_and_seed_give_equal_bytes(tars, made, tmp_path):
    out, found = made
    again = prepare(f'webdataset:{tars}', tmp_path / 'again')
    assert again == found
    names = [name for name in os.listdir(out) if name != '.lock']
    _, differing, missing = filecmp.cmpfiles(out, tmp_path / 'again', names, shallow=False)
    assert not differing and not missing
    other = prepare(f'webdataset:{tars}', tmp_path / 'other', seed=1)
    assert keys(tmp_path / 'other', other) != keys(out, found)


def test_the_index_says_sizes_and_tokens_of_every_sample(made):
    out, found = made
    tokenizer = load_tokenizer(out / found.tokenizer)
    assert tokenizer.checksum == found.checksum
    opened = shards(out, found)
    rows = opened.samples(np.arange(len(opened)))
    for number in range(0, len(opened), 7):
        sample = opened.read(number)
        rgb = image_ops.read_rgb(sample.images[0], 10**6)
        assert sample.captions == (caption(int(sample.key)),)
        assert rgb.shape[:2] == (rows['height'][number], rows['width'][number])
        assert max(rgb.shape) <= 32
        assert rows['prompt'][number] == len(tokenizer.encode(sample.captions[0]))
        original = picture(int(sample.key)).astype(float)
        assert abs(original.mean() - rgb.mean()) < 3
    talks = shards(out, found, 'conversations')
    images, owners = talks.images(np.arange(len(talks)))
    assert owners.tolist() == list(range(30)) and images['generated'].all()
    for number in range(len(talks)):
        assert image_ops.header_size(talks.read(number).images[0]) == (
            images['height'][number],
            images['width'][number],
        )


def test_what_cannot_be_used_is_counted_with_examples(tmp_path):
    entries = {
        'good': {'jpg': encoded(picture(0)), 'txt': b'a cat'},
        'cut': {'jpg': encoded(picture(1))[:200], 'txt': b'a cat'},
        'page': {'jpg': b'<html>', 'txt': b'a cat'},
        'mute': {'jpg': encoded(picture(2)), 'txt': b' '},
        'blind': {'txt': b'a cat'},
        'odd': {'jpg': encoded(picture(3)), 'json': b'{'},
    }
    with open(tmp_path / '0.tar', 'wb') as file:
        writer = tar.TarWriter(file)
        for key, members in entries.items():
            writer.add(key, members)
        writer.end()
    out = tmp_path / 'set'
    found = prepare(f'webdataset:{tmp_path}/0.tar', out)
    assert keys(out, found) == ['good']
    assert found.left_out == {'bad image': 3, 'empty caption': 1, 'malformed': 1}
    assert [name.split(':')[0] for name in found.examples['bad image']] == ['cut', 'page', 'blind']


def test_other_settings_in_the_same_folder_say_what_differs(tars, made):
    out, _ = made
    with pytest.raises(UserError, match=r'--size: then 32, now 64'):
        prepare(f'webdataset:{tars}', out, size=64)
    with pytest.raises(UserError, match=r'--source: then webdataset:\S+, now webdataset:/no'):
        prepare('webdataset:/no', out)


def test_a_truncated_tar_is_one_error_and_the_rest_is_not_read_again(made, tmp_path, monkeypatch):
    (tmp_path / 'set').mkdir()
    shutil.copy(made[0] / 'tokenizer.model', tmp_path / 'set')
    for number in range(3):
        write_tar(tmp_path / f'{number}.tar', range(10 * number, 10 * number + 10))
    whole = (tmp_path / '1.tar').read_bytes()
    (tmp_path / '1.tar').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r'1\.tar is damaged, truncated .* copy it again'):
        prepare(f'webdataset:{tmp_path}', tmp_path / 'set')
    assert not (tmp_path / 'set/set.json').exists()
    (tmp_path / '1.tar').write_bytes(whole)
    read, samples = [], source_flag.samples
    monkeypatch.setattr(source_flag, 'samples', lambda *a: read.append(a[0]) or samples(*a))
    found = prepare(f'webdataset:{tmp_path}', tmp_path / 'set')
    assert [unit.name for unit in read] == ['1.tar']
    assert sorted(keys(tmp_path / 'set', found)) == [f'{n:09d}' for n in range(30)]


def test_another_resizer_makes_another_set(tmp_path):
    given = Settings('webdataset:/tars', 32, 'jpeg', 'trained', 1, 0)
    given.claim(str(tmp_path), '', False)
    path = tmp_path / settings.NAME
    before = json.loads(path.read_text())
    assert before.pop('resizer') == 'pillow'
    path.write_text(json.dumps(before))  # as of sets begun without the flag
    assert given.check(str(tmp_path)) == ''
    with pytest.raises(UserError, match='--resizer: then pillow, now simd'):
        dataclasses.replace(given, resizer='simd').check(str(tmp_path))


def test_a_damaged_file_is_taken_out_of_the_source(made, tmp_path):
    for number in range(3):
        write_tar(tmp_path / f'{number}.tar', range(10 * number, 10 * number + 10))
    os.truncate(tmp_path / '1.tar', 5_000)
    for name in ('set', 'whole'):
        (tmp_path / name).mkdir()
        shutil.copy(made[0] / 'tokenizer.model', tmp_path / name)
    with pytest.raises(UserError, match=r'1\.tar is damaged'):
        prepare(f'webdataset:{tmp_path}/{{0..2}}.tar', tmp_path / 'set')
    with pytest.raises(UserError, match='begun with other settings'):
        prepare(f'webdataset:{made[0]}', tmp_path / 'set')
    left = f'webdataset:{tmp_path}/{{0\\,2}}.tar'
    found = prepare(left, tmp_path / 'set')
    assert found == prepare(left, tmp_path / 'whole')
    assert sorted(os.listdir(tmp_path / 'set')) == sorted(os.listdir(tmp_path / 'whole'))
    for name in os.listdir(tmp_path / 'whole'):
        assert (tmp_path / 'set' / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes()


def test_no_shard_of_a_longer_list_of_files_stays(tars, made, tmp_path, monkeypatch):
    out, found = made
    monkeypatch.setattr(set_file, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for source in (f'webdataset:{tars}', f'webdataset:{tars}/0.tar'):
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path)
        records = [n for n in os.listdir(tmp_path / 'cleaned') if 'captions-0' in n]
        assert len({name.partition('.')[0] for name in records}) == 1
    monkeypatch.undo()
    assert prepare(f'webdataset:{tars}', tmp_path) == found
    shards = [shard.name for each in found.shards.values() for shard in each]
    assert filecmp.cmpfiles(out, tmp_path, shards, shallow=False)[1:] == ([], [])


def test_a_finished_set_whose_input_has_changed(tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'set'
    folder.mkdir()
    write_tar(folder / '0.tar', range(20))
    found = prepare(f'webdataset:{folder}', out)
    assert prepare(f'webdataset:{folder}', out) == found
    write_tar(folder / '1.tar', range(20, 40))
    with pytest.raises(UserError, match='is finished, but its input has changed since'):
        prepare(f'webdataset:{folder}', out)
    settings = json.loads((out / 'prepare.json').read_text())
    del settings['units']  # of an older version
    (out / 'prepare.json').write_text(json.dumps(settings))
    assert prepare(f'webdataset:{folder}', out) == found


def test_a_set_that_cannot_be_read_costs_no_work_that_is_done(tmp_path):
    write_tar(tmp_path / '0.tar', range(20))
    work = tmp_path / 'set' / cleaning.FOLDER
    work.mkdir(parents=True)
    (tmp_path / 'set' / 'set.json').mkdir()
    with pytest.raises(UserError, match=r'set\.json cannot be read'):
        prepare(f'webdataset:{tmp_path}/0.tar', tmp_path / 'set')
    assert work.is_dir()


def test_settings_in_a_bucket_that_does_not_answer_are_not_damaged(tmp_path, monkeypatch):
    given = Settings('webdataset:/tars', 32, 'jpeg', 'trained', 1, 0)
    given.claim(str(tmp_path), '', False)

    def read(path):
        raise Unavailable('no answer')

    monkeypatch.setattr(storage, 'read', read)
    with pytest.raises(Unavailable, match='no answer'):
        given.check(str(tmp_path))


def test_a_finished_set_outlives_its_input(tmp_path):
    write_tar(tmp_path / '0.tar', range(20))
    found = prepare(f'webdataset:{tmp_path}/0.tar', tmp_path / 'set')
    (tmp_path / '0.tar').unlink()
    assert prepare(f'webdataset:{tmp_path}/0.tar', tmp_path / 'set') == found


def test_a_tokenizer_that_cannot_be_trained_names_the_flag(tars, tmp_path, monkeypatch):
    units = source_flag.units(f'webdataset:{tars}')
    with pytest.raises(UserError, match='tokenizer with --vocabulary=100 failed'):
        preparing._kept_tokenizer(str(tmp_path), None, units, 100)
    monkeypatch.setattr(preparing, '_texts', lambda units: [])
    with pytest.raises(UserError, match='no text to train on: --source has'):
        preparing._kept_tokenizer(str(tmp_path), None, units, 300)


def test_another_tokenizer_in_the_folder_is_refused(tars, made, tmp_path):
    given = load_tokenizer(made[0] / 'tokenizer.model')
    texts = [caption(number) for number in range(500, 600)]
    other = SentencePieceTokenizer.train(texts, 300)
    (tmp_path / 'tokenizer.model').write_bytes(other.model_bytes)
    with pytest.raises(UserError, match=r'tokenizer\.model is another tokenizer than --tokenizer'):
        prepare(f'webdataset:{tars}', tmp_path, given=given)
    assert prepare(f'webdataset:{tars}', tmp_path, given=other).checksum == other.checksum


def test_a_shard_that_is_not_whole_is_made_again(tars, made, tmp_path, monkeypatch):
    """Of an interrupted second pass: one shard is truncated, one has no index."""
    out, found = made
    monkeypatch.setattr(set_file, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(f'webdataset:{tars}', tmp_path)
    monkeypatch.undo()
    captions, talks = (found.shards[kind][0].name for kind in set_file.KINDS)
    data = (tmp_path / captions).read_bytes()
    (tmp_path / captions).write_bytes(data[:-512])
    (tmp_path / index.path_of(talks)).unlink()
    assert prepare(f'webdataset:{tars}', tmp_path) == found
    for name in (captions, index.path_of(captions), talks, index.path_of(talks)):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_records_that_a_hard_stop_has_emptied_are_made_again(tars, made, tmp_path, monkeypatch):
    monkeypatch.setattr(set_file, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(f'webdataset:{tars}', tmp_path)
    monkeypatch.undo()
    for path in (tmp_path / 'cleaned').glob('*.json'):
        os.truncate(path, 0)
    assert prepare(f'webdataset:{tars}', tmp_path) == made[1]


@pytest.mark.parametrize('name', ['cleaned/units.json', 'cleaned/REPORT'])
def test_a_bucket_that_cannot_be_read_is_no_damage(tars, tmp_path, monkeypatch, name):
    """What was finished must not be made again for it."""
    monkeypatch.setattr(set_file, 'write', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(f'webdataset:{tars}', tmp_path)
    report = next(
        n for n in os.listdir(tmp_path / 'cleaned') if re.fullmatch(r'[0-9a-f]+\.json', n)
    )
    unreadable, read = str(tmp_path / name.replace('REPORT', report)), storage.read

    def failing(path):
        if str(path) == unreadable:
            raise Unavailable(f'{path}: unreachable')
        return read(path)

    monkeypatch.setattr(storage, 'read', failing)
    with pytest.raises(Unavailable, match='unreachable'):
        prepare(f'webdataset:{tars}', tmp_path)


def test_temporary_files_for_a_bucket_are_removed_when_it_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    folders = ('gs://b/set', 'gs://b/set/cleaned', 'gs://b/other')
    for number, folder in enumerate(folders):
        with files.scratch(f'{folder}/0.tar') as file:
            Path(file.name).with_name(f'.{number}.tmp').touch()
    for folder in folders[:2]:
        files.remove_unfinished(folder)
    assert [path.name for path in tmp_path.rglob('*.tmp')] == ['.2.tmp']


def test_shards_of_an_input_that_changed_are_removed(tars, tmp_path):
    (tmp_path / 'captions-00777.tar').write_bytes(b'of an interrupted run')
    (tmp_path / 'captions-00777.tar.index').write_bytes(b'of it too')
    found = prepare(f'webdataset:{tars}', tmp_path)
    shards = {shard.name for each in found.shards.values() for shard in each}
    assert {name for name in os.listdir(tmp_path) if name.endswith('.tar')} == shards
    assert not (tmp_path / 'captions-00777.tar.index').exists()


@pytest.mark.parametrize('workers', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_of_the_file_system_comes_through(tars, tmp_path, workers):
    """As of a full disk: here folders have the names of the files to be written."""
    (tmp_path / 'cleaned').mkdir()
    for unit in source_flag.units(f'webdataset:{tars}'):
        (tmp_path / f'cleaned/{unit.id}.captions.tar').mkdir()
    with pytest.raises(OSError) as error:
        prepare(f'webdataset:{tars}', tmp_path, workers)
    assert error.value.errno == errno.EISDIR


def test_a_source_that_is_mistyped_does_not_claim_the_folder(tars, tmp_path):
    with pytest.raises(UserError, match='is missing'):
        prepare('webdataset:/no/0.tar', tmp_path)
    assert prepare(f'webdataset:{tars}', tmp_path).samples('captions') == 200
