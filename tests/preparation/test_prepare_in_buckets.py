"""Prepared sets from and in buckets, of real servers: the same bytes as on a disk."""

import json
import tempfile

import pyarrow as pa
import pytest
from prepare_inputs import caption, encoded, keys, picture, prepare, write_tar
from pyarrow import parquet as pq

from rf_jax.data.shards import index
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.slow


def test_a_bucket_gives_the_bytes_of_a_disk(bucket, tmp_path):
    folder, proxy = bucket
    for number in range(3):
        numbers = range(100 * number, 100 * number + 30)
        write_tar(tmp_path / f'{number}.tar', numbers, range(100 * number + 50, 100 * number + 55))
        storage.write(f'{folder}/in/{number}.tar', (tmp_path / f'{number}.tar').read_bytes())
    local = prepare(f'webdataset:{tmp_path}/*.tar', tmp_path / 'set')
    proxy.fail('503', times=5)
    assert prepare(f'webdataset:{folder}/in/*.tar', f'{folder}/set') == local
    proxy.heal()
    names = [shard.name for shards in local.shards.values() for shard in shards]
    names += [index.path_of(name) for name in names] + [local.tokenizer, 'set.json']
    for name in names:
        assert storage.read(f'{folder}/set/{name}') == (tmp_path / 'set' / name).read_bytes()
    assert sorted(storage.names(f'{folder}/set')) == sorted([*names, 'prepare.json'])
    assert len(set(keys(f'{folder}/set', local))) == 90


def test_a_truncated_tar_in_a_bucket(bucket, tmp_path, monkeypatch):
    folder, _ = bucket
    (tmp_path / 'temporary').mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'temporary'))
    write_tar(tmp_path / '0.tar', range(20))
    whole = (tmp_path / '0.tar').read_bytes()
    storage.write(f'{folder}/cut/0.tar', whole[:-3000])
    with pytest.raises(UserError, match=r'cut/0\.tar is damaged, truncated'):
        prepare(f'webdataset:{folder}/cut', f'{folder}/mended')
    storage.write(f'{folder}/cut/0.tar', whole)
    found = prepare(f'webdataset:{folder}/cut', f'{folder}/mended')
    assert len(set(keys(f'{folder}/mended', found))) == 20
    assert not list((tmp_path / 'temporary').iterdir())


def test_parquet_in_a_bucket_with_images_beside_it(bucket, tmp_path):
    folder, _ = bucket
    images = [{'bytes': encoded(picture(n)) if n % 2 else None, 'path': f'{n}.png'}
              for n in range(10)]  # fmt: skip
    table = pa.table({'image': images, 'caption': [caption(n) for n in range(10)]})
    pq.write_table(table, tmp_path / '0.parquet')
    storage.write(f'{folder}/rows/0.parquet', (tmp_path / '0.parquet').read_bytes())
    for n in range(0, 8, 2):
        storage.write(f'{folder}/rows/{n}.png', encoded(picture(n), 'PNG'))
    found = prepare(f'parquet:{folder}/rows', f'{folder}/of_rows')
    assert sorted(keys(f'{folder}/of_rows', found)) == sorted('012345679')
    assert found.left_out == {'bad image': 1}
    assert json.loads(storage.read(f'{folder}/of_rows/set.json'))['size'] == 32
