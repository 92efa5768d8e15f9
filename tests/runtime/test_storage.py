"""Bytes of files on this machine and in buckets, with real emulators, and with faults between."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emulators
import pytest

from rf_jax.runtime import buckets, storage
from rf_jax.runtime.errors import Unavailable, UserError

DATA = bytes(range(256)) * 40


@pytest.fixture(params=['local', 'gs', 's3'])
def folder(request, tmp_path):
    if request.param == 'local':
        return tmp_path
    servers = request.getfixturevalue('servers')
    servers[request.param].heal()
    return storage.as_epath(f'{request.param}://{emulators.NAME}/{tmp_path.name}')


def test_bytes_are_the_same_wherever_the_file_is(folder):
    file = folder / 'a' / 'file'
    storage.write(file, DATA)
    assert storage.read(file) == DATA
    assert storage.size(file) == len(DATA)
    assert storage.read_range(file, 1000, 500) == DATA[1000:1500]
    assert storage.read_range(file, len(DATA) - 7, 7) == DATA[-7:]
    assert storage.read_range(file, 3, 0) == b''
    storage.write(file, b'other')
    assert storage.read(file) == b'other' and storage.size(file) == 5


def test_what_is_there(folder):
    storage.write(folder / 'x' / 'b', b'1')
    storage.write(folder / 'x' / 'a', b'')
    storage.write(folder / 'x' / 'c' / 'd', b'1')
    assert storage.names(folder / 'x') == ['a', 'b', 'c']
    assert storage.names(folder / 'nothing') == []
    assert storage.exists(folder / 'x') and storage.exists(folder / 'x' / 'a')
    assert not storage.exists(folder / 'x' / 'nothing')
    assert storage.is_local(folder) == isinstance(folder, Path)


def test_a_name_is_given_once(folder):
    assert storage.create(folder / 'one', b'first')
    assert not storage.create(folder / 'one', b'second')
    assert storage.read(folder / 'one') == b'first'


def test_what_is_not_there_or_too_short(folder):
    storage.write(folder / 'short', b'0123456789')
    for ask in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            ask(folder / 'nothing')
    for offset in (8, 10, 30):
        with pytest.raises(UserError, match=r'short ends before .* truncated'):
            storage.read_range(folder / 'short', offset, 5)


def test_many_threads(folder):
    def both(i: int) -> bool:
        storage.write(folder / f'{i}', DATA[: i + 1])
        part = storage.read_range(folder / f'{i}', i, 1)
        return part == DATA[i : i + 1] and storage.size(folder / f'{i}') == i + 1

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(both, range(64)))
    assert len(storage.names(folder)) == 64


@pytest.mark.parametrize('kind', ['503', '429', 'reset', 'truncate'])
def test_a_fault_that_passes_changes_nothing(bucket, kind):
    url, proxy = bucket
    path = f'{url}/faults/{kind}'
    storage.write(path, DATA)
    for times, ask, right in (
        (2, lambda: storage.read(path), DATA),
        (2, lambda: storage.read_range(path, 100, 5000), DATA[100:5100]),
        (2, lambda: storage.write(path, DATA), None),
        (1, lambda: kind in storage.names(f'{url}/faults'), True),
        (1, lambda: storage.size(path), len(DATA)),
    ):
        proxy.fail(kind, times)
        assert ask() == right
        assert proxy.spoiled
        proxy.heal()
    assert storage.read(path) == DATA


@pytest.mark.parametrize('kind', ['503', 'reset'])
def test_a_large_file_arrives_in_pieces_through_faults_that_pass(
    bucket, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(storage, '_PIECE', 5 * 2**20)  # the least that S3 takes
    folder, proxy = bucket
    (tmp_path / 'file').write_bytes(DATA * 1200)
    path = f'{folder}/{tmp_path.name}/large'
    proxy.fail(kind, times=3)
    storage.upload(tmp_path / 'file', path)
    assert len(proxy.spoiled) == 3
    assert storage.read(path) == DATA * 1200
    proxy.fail('403')
    with pytest.raises(UserError, match='permission denied'):
        storage.upload(tmp_path / 'file', path)


def test_a_server_that_stalls_is_asked_again(bucket):
    url, proxy = bucket
    storage.write(f'{url}/stall', DATA)
    proxy.fail('stall', times=1)
    assert storage.read_range(f'{url}/stall', 100, 5000) == DATA[100:5100]
    assert proxy.spoiled


@pytest.mark.parametrize('kind', ['503', 'reset', 'truncate'])
def test_a_fault_that_stays_is_one_clear_error(bucket, kind):
    url, proxy = bucket
    path = f'{url}/stays/{kind}'
    storage.write(path, DATA)
    proxy.fail(kind)
    asked = [lambda: storage.read(path), lambda: storage.read_range(path, 100, 5000)]
    for ask in asked + [lambda: storage.write(path, b'other')] * (kind != 'truncate'):
        with pytest.raises(Unavailable, match=rf'^{path}: unreachable after'):
            ask()
    assert len(proxy.spoiled) >= 2 * buckets.TRIES
    proxy.heal()
    assert storage.read(path) == DATA


def test_permission_and_missing_buckets_are_errors_of_the_user(bucket, caplog):
    url, proxy = bucket
    path = f'{url}/refused'
    storage.write(path, DATA)
    proxy.fail('403')
    for ask in (
        storage.read,
        storage.size,
        storage.exists,
        storage.names,
        lambda path: storage.write(path, b''),
    ):
        with pytest.raises(UserError, match=rf'^{path}: permission denied') as error:
            ask(path)
        assert not isinstance(error.value, Unavailable)
    proxy.fail('401')
    with pytest.raises(UserError, match=rf'^{path}: permission denied'):
        storage.names(path)
    assert not caplog.text, 'the error is all that is to be read'
    proxy.heal()
    missing = url.replace(emulators.NAME, 'no-such-bucket')
    with pytest.raises(UserError, match='there is no such bucket'):
        storage.write(f'{missing}/file', b'')


def test_without_the_libraries_the_error_names_the_extra():
    code = (
        'import sys; sys.modules["gcsfs"] = None\n'
        'from rf_jax.runtime import storage\n'
        'assert "jax" not in sys.modules\n'
        'try: storage.read("gs://bucket/file")\n'
        'except ValueError as error: print(error)\n'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 'gs:// and s3:// need gcsfs' in out.stdout and "'rf_jax[buckets]'" in out.stdout


def test_a_local_write_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    storage.write(tmp_path / 'file', b'old')

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='No space'):
        storage.write(tmp_path / 'file', b'new')
    assert storage.names(tmp_path) == ['file'] and storage.read(tmp_path / 'file') == b'old'


def test_a_server_that_fails_is_asked_again_after_growing_pauses(monkeypatch):
    pauses, answers = [], [OSError('busy'), OSError('busy'), 'here', *[OSError('down')] * 9]
    monkeypatch.setattr(buckets.time, 'sleep', pauses.append)

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert buckets.with_retries('gs://bucket/file', ask) == 'here'
    assert pauses == [buckets.FIRST_PAUSE, 2 * buckets.FIRST_PAUSE]
    with pytest.raises(Unavailable, match='unreachable after 3 attempts: down'):
        buckets.with_retries('gs://bucket/file', ask)
    assert len(answers) == 6
