"""webdataset.py: tars of the webdataset library are indexed once and read at random; damage and
change are one clear line.
"""

import gzip
import io
import lzma
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from rf_jax.data import source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.shards import patterns, scanning
from rf_jax.data.sources.webdataset import WebdatasetSource
from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError

MANY = 10**6
KEPT = ('.index', '.json')


def jpeg(number):
    file = io.BytesIO()
    size = (24 + number, 16)
    Image.new('RGB', size, (number, 100, 200)).save(file, 'JPEG')
    return file.getvalue()


def caption(number):
    return f'a picture {"of a cat " * (number % 4)}number {number}'


def write(path, numbers, **changed):
    """A tar as img2dataset writes it; `changed`: other files of sample number 0 of it."""
    webdataset = pytest.importorskip('webdataset')
    with webdataset.TarWriter(str(path)) as writer:
        for place, number in enumerate(numbers):
            own = changed if place == 0 else {}
            writer.write(
                {
                    '__key__': f'{number:09d}',
                    'jpg': jpeg(number),
                    'txt': caption(number),
                    'json': {'caption': caption(number), 'url': 'http://a/b.jpg', 'sha256': 'ab'},
                }
                | own
            )


@pytest.fixture
def folder(tmp_path):
    for shard in range(3):
        write(tmp_path / f'{shard:05d}.tar', range(20 * shard, 20 * shard + 20))
    return tmp_path


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train([caption(n) for n in range(60)], 300)


@pytest.fixture
def scanned(monkeypatch):
    """The shards that are scanned, in order."""
    found, scan = [], scanning.scan
    monkeypatch.setattr(
        *(
            scanning,
            'scan',
            lambda format, path, *more: found.append(path[-9:]) or scan(format, path, *more),
        )
    )
    return found


def opened(path, tokenizer, **options):
    (source,) = source_list.build(f'webdataset:{path}'.replace(',', '\\,'), MANY)
    return source, source.open(tokenizer, 1, **options)


def kept(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(KEPT))


def test_samples_are_those_of_the_tars(folder, tokenizer):
    source, shards = opened(folder, tokenizer)
    assert list(shards) == ['captions'] and len(shards['captions']) == 60
    for number in np.random.default_rng(0).permutation(60):
        read = shards['captions'].read(number)
        assert (read.captions, read.images) == ((caption(number).strip(),), (jpeg(number),))
        row = shards['captions'].samples(np.array([number]))[0]
        assert (row['height'], row['width']) == (16, 24 + number)
        assert row['prompt'] == len(tokenizer.encode(caption(number).strip()))
    assert source.skipped == {}


def test_shards_are_scanned_once_and_again_only_if_they_change(folder, tokenizer, scanned):
    first, _ = opened(folder, tokenizer)
    assert scanned == ['00000.tar', '00001.tar', '00002.tar']
    again, _ = opened(folder, tokenizer)
    assert len(scanned) == 3 and again.summary() == first.summary()
    write(folder / '00001.tar', range(30))
    os.utime(folder / '00001.tar', (0, 0))  # an older file, as rsync leaves it
    changed, shards = opened(folder, tokenizer)
    assert scanned[3:] == ['00001.tar'] and len(shards['captions']) == 70
    assert changed.summary() != first.summary()
    # The same size, with other content, written later.
    write(folder / '00002.tar', range(70, 90))
    _, shards = opened(folder, tokenizer)
    assert scanned[4:] == ['00002.tar']
    assert shards['captions'].read(50).images == (jpeg(70),)


def test_another_tokenizer_or_limit_has_an_index_of_its_own(folder, tokenizer, scanned):
    other = SentencePieceTokenizer.train([caption(n) for n in range(60)] * 2, 310)
    opened(folder, tokenizer)
    opened(folder, other)
    opened(folder, tokenizer)
    opened(folder, other)
    assert len(scanned) == 6
    source = WebdatasetSource(str(folder), 16 * 40)
    assert len(source.open(tokenizer, 1)['captions']) == 17
    assert source.skipped == {'more than data.max_pixels': 43}


@pytest.mark.parametrize(
    ('pattern', 'count'),
    [('{00000..00002}.tar', 60), ('{00000,00002}.tar', 40), ('*.tar', 60), ('00001.tar', 20),
     ('0000[12].tar', 40), ('', 60)],
)  # fmt: skip
def test_patterns(folder, tokenizer, pattern, count):
    opened(folder, tokenizer)  # what is kept is no shard
    assert len(opened(folder / pattern, tokenizer)[1]['captions']) == count


def test_braces_give_their_order():
    assert patterns.shards('gs://b/{b,a}/{8..11}.tar', '*.tar') == [
        f'gs://b/{folder}/{n}.tar' for folder in 'ba' for n in (8, 9, 10, 11)
    ]


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, tokenizer):
    files = [
        {'jpg': b'no picture'},
        {'txt': ' ', 'json': {}},
        {'json': b'{"cap'},
        {'jpg': jpeg(1)},
    ]
    for number, changed in enumerate(files):
        write(tmp_path / f'{number}.tar', [number, 50 + number], **changed)
    for _ in range(2):  # the second time from what was kept
        source, shards = opened(tmp_path, tokenizer)
        assert len(shards['captions']) == 5
        assert source.skipped == {'bad image': 1, 'empty caption': 1, 'malformed': 1}
    assert shards['captions'].read(0).captions == (caption(50).strip(),)


def test_conversations_and_captions_may_share_a_tar(tmp_path, tokenizer):
    webdataset = pytest.importorskip('webdataset')
    talk = [{'role': 'user', 'content': '<image> what is it?'},
            {'role': 'assistant', 'content': 'a cat'}]  # fmt: skip
    with webdataset.TarWriter(str(tmp_path / 'a.tar')) as writer:
        writer.write({'__key__': '0', 'jpg': jpeg(3), 'json': {'messages': talk}})
        writer.write({'__key__': '1', 'jpg': jpeg(4), 'txt': caption(4)})
    source, shards = opened(tmp_path, tokenizer)
    assert {kind: len(each) for kind, each in shards.items()} == {'captions': 1, 'conversations': 1}
    assert shards['conversations'].read(0).images == (jpeg(3),)
    assert shards['captions'].read(0).images == (jpeg(4),)
    assert {'a cat', caption(4)} <= set(source.texts(10))


def test_texts_come_from_all_over_the_shards_without_an_index(folder):
    source = WebdatasetSource(str(folder), MANY)
    found = set(source.texts(6))
    assert {caption(n).strip() for n in (0, 1, 20, 21, 40, 41)} <= found
    assert caption(2).strip() not in found and not kept(folder)


def test_a_truncated_tar_is_one_line_and_keeps_the_others(folder, tokenizer, scanned):
    data = (folder / '00001.tar').read_bytes()
    for length in (len(data) // 2, 0, len(data) // 2 + 256):
        (folder / '00001.tar').write_bytes(data[:length])
        with pytest.raises(UserError, match=r'00001\.tar is .*(truncated|empty).*copy it again'):
            opened(folder, tokenizer)
        assert not any('00001' in name for name in kept(folder))
    (folder / '00001.tar').write_bytes(data)
    before = len(scanned)
    assert len(opened(folder, tokenizer)[1]['captions']) == 60
    assert scanned[before:] == ['00001.tar', '00002.tar']


def test_tar_files_that_cannot_be_read_say_what_to_do(tmp_path, tokenizer):
    write(tmp_path / '0.tar', range(3))
    data = (tmp_path / '0.tar').read_bytes()
    (tmp_path / '0.tar').write_bytes(data + data)
    with pytest.raises(UserError, match=r'0\.tar is several tar files in one, .*--concatenate$'):
        opened(tmp_path, tokenizer)
    for module, tool in ((gzip, 'gunzip'), (lzma, 'unxz')):
        (tmp_path / '0.tar').write_bytes(module.compress(data))
        with pytest.raises(UserError, match=rf'0\.tar is compressed .*unpack it \({tool}\)$'):
            opened(tmp_path, tokenizer)
    for name in ('0.tar.gz', '0.tgz'):
        (tmp_path / name).write_bytes(gzip.compress(data))
        with pytest.raises(UserError, match='is compressed with gzip'):
            opened(tmp_path / name, tokenizer)
        (tmp_path / '0.tar').unlink(missing_ok=True)
        for pattern in ('', '*.tar', '0*.tar'):
            with pytest.raises(UserError, match=rf'{name} is compressed, .*\(gunzip\)'):
                opened(tmp_path / pattern, tokenizer)
        (tmp_path / name).unlink()


@pytest.mark.parametrize('name', ['captions.index', 'json'])
def test_a_damaged_index_is_made_again(folder, tokenizer, scanned, name, caplog):
    _, shards = opened(folder, tokenizer)
    (path,) = folder.glob(f'00001.tar.*.{name}')
    path.write_bytes(path.read_bytes()[:-20])
    assert opened(folder, tokenizer)[1]['captions'].read(30) == shards['captions'].read(30)
    assert scanned[3:] == ['00001.tar']
    assert 'the index of' in caplog.text and 'is damaged' in caplog.text
    path.unlink()
    assert len(opened(folder, tokenizer)[1]['captions']) == 60


def test_nothing_half_written_is_read_as_whole(folder, tokenizer, monkeypatch):
    """A process that ends while it keeps an index leaves a shard that is not indexed."""
    write_file, names = storage.write, []

    def write_some(path, data):
        names.append(path)
        if len(names) == 4:
            raise KeyboardInterrupt
        write_file(path, data)

    with monkeypatch.context() as stopped:
        stopped.setattr(storage, 'write', write_some)
        with pytest.raises(KeyboardInterrupt):
            opened(folder, tokenizer)
    assert len([name for name in kept(folder) if name.endswith('.json')]) == 1
    assert len(opened(folder, tokenizer)[1]['captions']) == 60


def test_a_folder_that_cannot_be_written_has_its_index_elsewhere(
    folder, tokenizer, tmp_path_factory, monkeypatch, scanned
):
    elsewhere, write_file = tmp_path_factory.mktemp('elsewhere'), storage.write

    def refuse(path, data):
        if str(path).startswith(str(folder)):
            raise PermissionError(13, 'Permission denied')
        write_file(path, data)

    monkeypatch.setattr(storage, 'write', refuse)
    first, _ = opened(folder, tokenizer, elsewhere=elsewhere)
    again, shards = opened(folder, tokenizer, elsewhere=elsewhere)
    assert len(scanned) == 3 and not kept(folder) and again.summary() == first.summary()
    assert shards['captions'].read(21).images == (jpeg(21),)


def test_one_failure_of_a_bucket_sends_no_index_elsewhere(
    folder, tokenizer, tmp_path_factory, monkeypatch, scanned
):
    """Where other hosts could not see it."""
    elsewhere, write_file, names = tmp_path_factory.mktemp('elsewhere'), storage.write, []

    def fail_once(path, data):
        names.append(path)
        if len(names) == 3:
            raise Unavailable(f'{path}: unreachable after 9 attempts: 503')
        write_file(path, data)

    monkeypatch.setattr(storage, 'write', fail_once)
    with pytest.raises(Unavailable):
        opened(folder, tokenizer, elsewhere=elsewhere)
    assert len(opened(folder, tokenizer, elsewhere=elsewhere)[1]['captions']) == 60
    assert len(kept(folder)) == 6 and not list(elsewhere.iterdir())
    assert scanned == ['00000.tar', '00001.tar', '00001.tar', '00002.tar']


def test_an_index_that_another_run_made_meanwhile_stays(folder, tokenizer, monkeypatch):
    scan, others = scanning.scan, []

    def scan_slowly(format, path, *more):
        found = scan(format, path, *more)
        if not others:
            others.append('')  # the other run does not wait
            opened(folder, tokenizer)
            others[:] = [(each, each.stat().st_ino) for each in folder.iterdir()]
        return found

    monkeypatch.setattr(scanning, 'scan', scan_slowly)
    _, shards = opened(folder, tokenizer)
    assert len(kept(folder)) == 6 and len(shards['captions'].samples(np.arange(60))) == 60
    assert [(each, each.stat().st_ino) for each in folder.iterdir()] == others


def test_another_count_of_a_shard_is_seen(folder, tokenizer):
    data = SimpleNamespace(cache_megabytes=1)

    def said(numbers):
        write(folder / '00001.tar', numbers)
        sources = source_list.build(f'webdataset:{folder}', MANY)
        return source_list.open_shards(sources, tokenizer, data)

    first = said(range(20, 40))
    assert first.startswith(f'60 captions of webdataset:{folder} (digest ')
    assert said(range(20, 40)) == first != said(range(20, 41))


def test_an_index_of_a_buckets_shards_is_no_open_file(
    folder, tokenizer, tmp_path_factory, bucket, monkeypatch
):
    """Many more of them are held than a process may have files."""
    elsewhere, write_file = tmp_path_factory.mktemp('elsewhere'), storage.write
    storage.write(f'{bucket[0]}/tars/0.tar', (folder / '00000.tar').read_bytes())

    def refuse(path, data):
        if not storage.is_local(path):
            raise PermissionError(13, 'Permission denied')
        write_file(path, data)

    monkeypatch.setattr(storage, 'write', refuse)
    _, shards = opened(f'{bucket[0]}/tars/0.tar', tokenizer, elsewhere=elsewhere)
    assert len(shards['captions'].samples(np.arange(3))) == 3 and list(elsewhere.rglob('*.index'))
    files = [os.path.realpath(each) for each in Path('/proc/self/fd').iterdir()]
    assert not [path for path in files if path.startswith(str(elsewhere))]


def test_shards_that_vanish_or_change_during_a_run(folder, tokenizer):
    _, shards = opened(folder, tokenizer)
    os.remove(folder / '00000.tar')
    for _ in range(2):
        with pytest.raises(UserError, match=r'00000\.tar is gone since the start of the run'):
            shards['captions'].read(3)
    write(folder / '00001.tar', range(3))
    with pytest.raises(UserError, match=r'00001\.tar has changed since it was indexed'):
        shards['captions'].read(25)
    assert shards['captions'].read(45).images == (jpeg(45),)
    os.remove(folder / '00002.tar')
    with pytest.raises(UserError, match='gone'):
        shards['captions'].read(45)


def test_missing_shards_are_counted_and_named(folder):
    for argument, what in (
        ('{00000..00004}.tar', r'2 of 5 shards are missing, such as .*00003\.tar'),
        ('none.tar', '1 of 1 shards are missing'),
        ('x*.tar', '0 of 0'),
        ('{a}.tar', 'neither a range'),
        ('*/a.tar', 'only the last part'),
    ):
        with pytest.raises(UserError, match=f'data.sources: webdataset:.*{what}'):
            source_list.build(f'webdataset:{folder}/{argument}', MANY)
    with pytest.raises(UserError, match='no usable sample'):
        write(folder / 'empty.tar', [0], txt=' ', json={})
        opened(folder / 'empty.tar', SentencePieceTokenizer.train(['a b c'] * 9, 300))


def test_shards_in_a_bucket(folder, tokenizer, bucket, scanned):
    """The index stands beside them, and samples that come together are one request."""
    address, proxy = bucket
    for path in folder.glob('*.tar'):
        storage.write(f'{address}/{folder.name}/{path.name}', path.read_bytes())
    _, shards = opened(folder, tokenizer)
    for pattern, count in (('', 60), ('/*.tar', 60), ('/{00000..00001}.tar', 40)):
        argument = source_list.with_absolute_paths(f'webdataset:{address}/{folder.name}{pattern}')
        _, there = opened(argument.removeprefix('webdataset:'), tokenizer)
        assert len(there['captions']) == count
        for number in (0, 39, 1):
            assert there['captions'].read(number) == shards['captions'].read(number)
    assert len(scanned) == 6  # three on the disk, three in the bucket
    assert len(storage.names(f'{address}/{folder.name}')) == 9
    with pytest.raises(UserError, match='1 of 2 shards are missing'):
        opened(f'{address}/{folder.name}/{{00002..00003}}.tar', tokenizer)
    proxy.fail('403')
    with pytest.raises(UserError):
        opened(f'{address}/{folder.name}', tokenizer)


@pytest.mark.slow
def test_several_processes_index_as_one_does(folder, tokenizer, monkeypatch, tmp_path_factory):
    one, _ = opened(folder, tokenizer)
    other = tmp_path_factory.mktemp('other')
    for path in folder.glob('*.tar'):
        shutil.copy(path, other)
    monkeypatch.setattr(scanning, '_ALONE', 0)
    several, _ = opened(other, tokenizer)
    assert several.summary() == one.summary()
    assert kept(other) == kept(folder)
    for name in kept(other):
        assert (other / name).read_bytes() == (folder / name).read_bytes()
