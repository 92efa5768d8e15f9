"""Shards of tar files with an index: what is written is read, and damage is one clear error."""

import io
import json
import os
import resource
import tarfile
from pathlib import Path

import numpy as np
import prepared_set
import pytest
from PIL import Image
from prepared_set import captioned, talk, write_shard

from rf_jax.data import image_ops
from rf_jax.data.records import BadImage
from rf_jax.data.shards import index, sample, set_file, tar
from rf_jax.data.shards.reader import Shards
from rf_jax.data.shards.tar_format import Tar
from rf_jax.data.sources.prepared import PreparedSource
from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable, UserError


@pytest.fixture(scope='module')
def tokenizer():
    return prepared_set.tokenizer()


def opened(tmp_path, tokenizer, make, counts=(5, 1, 70)):
    numbers = iter(range(sum(counts)))
    paths = []
    for shard, count in enumerate(counts):
        paths.append(tmp_path / f'{shard}.tar')
        write_shard(paths[-1], [make(next(numbers)) for _ in range(count)], tokenizer)
    paths = [str(path) for path in paths]
    return Shards(paths, counts, lambda path: index.read(index.path_of(path)), Tar(1))


@pytest.mark.parametrize('make', [captioned, talk])
def test_every_sample_is_read_as_it_was_written(tmp_path, tokenizer, make):
    shards = opened(tmp_path, tokenizer, make)
    assert len(shards) == 76
    for number in np.random.default_rng(0).permutation(76):
        assert shards.read(number) == make(number)[0]


def test_samples_say_what_they_need(tmp_path, tokenizer):
    shards = opened(tmp_path, tokenizer, captioned)
    numbers = np.array([70, 3, 5, 4, 3])
    rows = shards.samples(numbers)
    assert rows['height'].tolist() == [16 + 16 * (n % 3) for n in numbers]
    longest = [max(len(tokenizer.encode(c)) for c in captioned(n)[0].captions) for n in numbers]
    assert rows['prompt'].tolist() == longest
    asked = len(tokenizer.encode('which colour is it?')) + len(tokenizer.encode('grey'))
    assert rows['answer'].tolist() == [
        max(row, asked) if n % 2 else row for n, row in zip(numbers, rows['prompt'].tolist())
    ]


def test_conversations_say_their_images(tmp_path, tokenizer):
    shards = opened(tmp_path, tokenizer, talk)
    numbers = np.array([40, 2, 5, 2])
    images, owners = shards.images(numbers)
    for position, number in enumerate(numbers):
        own = images[owners == position]
        assert [(h, w) for h, w, _ in own.tolist()] == talk(number)[1]
        assert own['generated'].tolist() == [0] * (len(own) - 1) + [1]


def test_a_shard_is_a_tar_file_of_webdataset(tmp_path, tokenizer):
    found = write_shard(tmp_path / '0.tar', [captioned(0), captioned(1)], tokenizer)
    with tarfile.open(tmp_path / '0.tar') as archive:
        assert archive.getnames() == ['000000000.json', '000000000.png',
                                      '000000001.json', '000000001.png']  # fmt: skip
    with open(tmp_path / '0.tar', 'rb') as file:
        scanned = list(tar.scan(file))
    assert [(at, blocks) for *_, at, blocks in scanned] == [
        (row['offset'], row['blocks']) for row in found.samples
    ]


def test_files_of_img2dataset_are_read():
    members = {
        'jpg': b'1',
        'txt': b' a cat ',
        'json': b'{"caption": "a cat", "url": "x", "sha": 1}',
    }
    found = sample.from_members('00001', members)
    assert (found.captions, found.images) == (('a cat',), (b'1',))
    with pytest.raises(BadImage, match='no image among json, txt'):
        sample.from_members('1', {'txt': b'a', 'json': b'{}'})
    with pytest.raises(ValueError, match='empty caption'):
        sample.from_members('1', {'jpg': b'1', 'txt': b' '})


def test_long_names_and_folders_in_a_tar_file(tmp_path):
    file = io.BytesIO()
    writer = tar.TarWriter(file)
    keys = ['a/b', 'long/' + 'x' * 200, 'ü']
    places = [writer.add(key, {'0.jpg': b'1' * 700, 'json': b'{}'}) for key in keys]
    writer.end()
    data = file.getvalue()
    for key, (at, blocks) in zip(keys, places):
        found = tar.members(data[512 * at : 512 * (at + blocks)])
        assert found == (key, {'0.jpg': b'1' * 700, 'json': b'{}'})
    assert [(key, at) for key, _, at, _ in tar.scan(io.BytesIO(data))] == [
        (key, at) for key, (at, _) in zip(keys, places)
    ]


def packed(*files):
    """A tar file of these (name, content)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def read_twice(data):
    """{key: members} of a tar file, the same in a scan as by ranges."""
    scanned = list(tar.scan(io.BytesIO(data)))
    for key, found, at, blocks in scanned:
        assert tar.members(data[512 * at : 512 * (at + blocks)]) == (key, found)
    return {key: found for key, found, *_ in scanned}


@pytest.mark.parametrize('folder', ['', './', 'cats/'])
def test_files_that_macos_adds_are_no_part_of_a_sample(folder):
    names = ['.DS_Store', '._a.jpg', 'a.jpg', '._a.txt', '.DS_Store', 'a.txt', '._b.jpg', 'b.jpg',
             '._b.txt', 'b.txt', '.DS_Store']  # fmt: skip
    content = {'jpg': b'1' * 700, 'txt': b'a cat'}
    data = packed(*((folder + n, content.get(n[2:], b'\0\5\x16\7' * 200)) for n in names))
    assert read_twice(data) == {f'{folder}a': content, f'{folder}b': content}


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_text_may_have_a_byte_order_mark(encoding):
    def encoded(text):
        return text.encode(encoding)

    for members in (
        {'jpg': b'1', 'txt': encoded('zwölf\r\nKatzen')},
        {'jpg': b'1', 'json': encoded('{"caption": "zwölf Katzen"}')},
    ):
        assert sample.from_members('1', members).captions == ('zwölf Katzen',)
    cut = {'jpg': b'1', 'txt': 'zwölf'.encode('latin-1')}
    assert sample.from_members('1', cut).captions == ('zw\ufffdlf',)
    cut = {'jpg': b'1', 'txt': 'zwölf'.encode('utf-16')[:-1]}
    assert sample.from_members('1', cut).captions == ('zwöl\ufffd',)


def test_a_captioned_image_needs_no_metadata_that_can_be_used():
    alike = [[1, 2], {'conversations': 'none'}, {'messages': [], 'tags': {'general': ['x']}},
             {'conversations': [{'from': 'robot', 'value': 'x'}]}, 'text', {'kind': 3}]  # fmt: skip
    for entry in alike:
        members = {'jpg': b'1', 'txt': b'a cat', 'json': json.dumps(entry).encode()}
        found = sample.from_members('1', members)
        assert (found.captions, found.images, found.messages) == (('a cat',), (b'1',), ()), entry
        del members['txt']
        with pytest.raises(ValueError):
            sample.from_members('1', members)
    own = {'jpg': b'1', 'txt': b' ', 'json': b'{"caption": "a cat", "conversations": 3}'}
    assert sample.from_members('1', own).captions == ('a cat',)
    with pytest.raises(ValueError, match='messages are a str'):  # rather than: empty caption
        sample.from_members('1', {'jpg': b'1', 'json': b'{"messages": "none"}'})


@pytest.mark.parametrize('rest', ['tar', 'late tar', 'text'])
def test_what_follows_the_end_of_a_tar_file_is_no_silent_loss(rest):
    one, two = packed(('a.jpg', b'1')), packed(('b.jpg', b'2'))
    more = {'tar': two, 'late tar': b'\0' * 2**22 + two, 'text': b'x'}[rest]
    with pytest.raises(tar.Unsuitable, match='several tar files in one'):
        list(tar.scan(io.BytesIO(one + more)))
    assert len(list(tar.scan(io.BytesIO(one + b'\0' * 2**22)))) == 1


def test_names_need_not_be_utf_8(tokenizer):
    names = ('h\xe9.jpg', 'h\xe9.txt', 'h\xe8.jpg', 'h\xe8.txt')
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w', format=tarfile.GNU_FORMAT, encoding='latin-1') as t:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            t.addfile(info, io.BytesIO(b'1'))
    scanned = list(tar.scan(io.BytesIO(file.getvalue())))
    assert [key for key, *_ in scanned] == ['h?', 'h?'], 'two samples'
    for key, _, at, blocks in scanned:
        own = tar.members(file.getvalue()[512 * at : 512 * (at + blocks)])
        assert own == (key, {'jpg': b'1', 'txt': b'1'})
    named = sample.from_members('1', {'jpg': b'1', 'json': b'{"caption": "a", "key": "\\udce9"}'})
    assert b'"key": "?"' in sample.to_members(named, 'jpg')['json']


def test_names_with_more_dots_are_explained():
    members = {f'{n:04d}.{end}': b'1' for n in range(50) for end in ('jpg', 'txt')}
    with pytest.raises(BadImage) as caught:
        sample.from_members('img', members)
    assert str(caught.value) == (
        'no image among 0000.jpg, 0000.txt, 0001.jpg, 0001.txt, 0002.jpg, 0002.txt, ... (100 '
        'files); the name of a sample ends at the first dot of the names of its files'
    )


@pytest.mark.parametrize(('extension', 'form'), [('avif', 'AVIF'), ('jfif', 'JPEG')])
def test_other_images_that_pillow_reads(extension, form):
    file = io.BytesIO()
    Image.new('RGB', (16, 24)).save(file, form)
    found = sample.from_members('1', {extension: file.getvalue(), 'txt': b'a cat'})
    assert image_ops.read_rgb(found.images[0], 10**6).shape == (24, 16, 3)


def test_damage_is_one_clear_error(tmp_path, tokenizer):
    found = write_shard(tmp_path / '0.tar', [captioned(n) for n in range(9)], tokenizer)
    path = tmp_path / '0.tar.index'
    path.write_bytes(found.to_bytes()[:-1])
    with pytest.raises(UserError, match=r'truncated: .* expected 208 for 9 samples'):
        index.read(str(path))
    path.write_bytes(b'')
    with pytest.raises(UserError, match='not the index'):
        index.read(str(path))
    path.write_bytes(found.to_bytes())
    shards = Shards([str(tmp_path / '0.tar')], [8], lambda p: index.read(p + '.index'), Tar(1))
    with pytest.raises(UserError, match='has 9 samples, expected 8'):
        shards.read(0)
    data = (tmp_path / '0.tar').read_bytes()
    third = 512 * int(found.samples['offset'][3])
    for end in (third, third - 30, third - 700, len(data) - 1024):  # in a header, between files
        with pytest.raises(ValueError, match='truncated'):
            list(tar.scan(io.BytesIO(data[:end])))


def test_many_sets_leave_files_to_open(tmp_path):
    """Four sets of 256 shards, where a process may have 1,024 files."""
    row = np.zeros(1, index.SAMPLE)
    sets = []
    for name in 'abcd':
        paths = [str(tmp_path / f'{name}{number}.tar') for number in range(256)]
        for path in paths:
            storage.write(index.path_of(path), index.Index(row, 1, 'x').to_bytes())
        sets.append(Shards(paths, [1] * 256, lambda path: index.read(index.path_of(path)), Tar(1)))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(os.listdir('/proc/self/fd')) + 600
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, before[0]), before[1]))
    try:
        for shards in sets * 2:
            assert len(shards.samples(np.arange(256))) == 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_set_is_whole_once_set_json_is_written(tmp_path):
    with pytest.raises(UserError, match='no prepared set'):
        set_file.read(str(tmp_path))
    shards = {'captions': [set_file.Shard('captions-00000.tar', 5, 1024, 'ab')]}
    written = set_file.PreparedSet(
        shards | {'conversations': []}, 'tokenizer.model', 'c' * 64, 288, {'bad image': 2}
    )
    set_file.write(str(tmp_path), written)
    assert set_file.read(str(tmp_path)) == written
    assert written.samples('captions') == 5
    (tmp_path / 'set.json').write_text('{"format": 1}')
    with pytest.raises(UserError, match='cannot be read'):
        set_file.read(str(tmp_path))
    (tmp_path / 'set.json').unlink()
    (tmp_path / 'set.json').mkdir()
    with pytest.raises(UserError, match='cannot be read'):
        set_file.read(str(tmp_path))


def test_a_bucket_that_does_not_answer_is_no_damaged_set(tmp_path, monkeypatch):
    """The same command may succeed later: it must not end with the code of a user's error."""
    (tmp_path / 'set.json').touch()

    def read(path):
        raise Unavailable('no answer')

    monkeypatch.setattr(storage, 'read', read)
    with pytest.raises(Unavailable, match='no answer'):
        set_file.read(str(tmp_path))


@pytest.fixture
def requests(monkeypatch):
    """(path, offset, length) of all ranges read, as if from a bucket."""
    asked = []

    def read_range(path, offset, length):
        asked.append((path, offset, length))
        with open(path, 'rb') as file:
            file.seek(offset)
            return file.read(length)

    monkeypatch.setattr(storage, 'is_local', lambda path: False)
    monkeypatch.setattr(storage, 'read', lambda path: Path(path).read_bytes())
    monkeypatch.setattr(storage, 'read_range', read_range)
    return asked


def test_samples_that_come_together_are_one_request_of_a_bucket(tmp_path, tokenizer, requests):
    shards = opened(tmp_path, tokenizer, captioned, counts=(100, 92))
    order = np.random.default_rng(0).permutation(64)
    for block, count in ((0, 1), (64, 2), (128, 1)):  # the second is in both shards
        requests.clear()
        for number in block + order:
            assert shards.read(number) == captioned(number)[0]
        assert len(requests) == count


def test_texts_of_a_set_in_a_bucket_are_read_in_blocks(tmp_path, tokenizer, request, caplog):
    prepared_set.write(tmp_path, tokenizer, captions=(200,))
    source = PreparedSource(str(tmp_path), 2**30)
    requests = request.getfixturevalue('requests')
    texts = list(source.texts(150))
    assert texts == [text for number in range(150) for text in captioned(number)[0].texts()]
    assert len(requests) == 3 and not caplog.text


@pytest.mark.parametrize('held, one_by_one', [(2, False), (0.5, True)])
def test_a_cache_that_is_too_small_costs_no_more_than_single_reads(
    tmp_path, tokenizer, requests, caplog, held, one_by_one
):
    """Windows of four blocks in a cache that has room for `held` of them."""
    shards = opened(tmp_path, tokenizer, captioned, counts=(64,) * 12)
    shards.read(0)
    cache = shards._format._ranges
    cache.limit = int(held * 4 * requests[0][2])
    requests.clear()
    rng, used = np.random.default_rng(0), 0
    for window in range(9):
        for number in rng.permutation(256) + 256 * (window % 3):
            used += int(shards.sample(number)['blocks']) * index.BLOCK
            assert shards.read(number) == captioned(number)[0]
    fetched = sum(length for *_, length in requests)
    assert fetched < (4 if one_by_one else 1.1) * used, fetched / used
    assert ('data.cache_megabytes=' in caplog.text) == one_by_one
