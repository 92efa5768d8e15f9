"""Runs of twenty steps on shards that other libraries wrote."""

import io
import json

import pytest
from PIL import Image
from shrink import tiny_run

from rf_jax.runtime import checkpoint, distributed
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

COUNT = 300
STEPS = 20


def jpeg(number):
    file = io.BytesIO()
    height, width = 20 + number % 30, 24 + number % 17
    Image.new('RGB', (width, height), (number % 256, 80, 160)).save(file, 'JPEG')
    return file.getvalue()


def caption(number):
    return f'a picture of shade {number}'


def tars(folder):
    webdataset = pytest.importorskip('webdataset')
    with webdataset.ShardWriter(f'{folder}/%05d.tar', maxcount=110, verbose=0) as writer:
        for number in range(COUNT):
            writer.write({'__key__': f'{number:09d}', 'jpg': jpeg(number), 'txt': caption(number)})
    return f'webdataset:{folder}/{{00000..00002}}.tar'


def array_records(folder):
    tfds = pytest.importorskip('tensorflow_datasets')
    features = tfds.features.FeaturesDict(
        {'image': tfds.features.Image(encoding_format='jpeg'), 'caption': tfds.features.Text()}
    )
    found = [{'image': io.BytesIO(jpeg(n)), 'caption': caption(n)} for n in range(COUNT)]
    methods = {
        'VERSION': tfds.core.Version('1.0.0'),
        '_info': lambda self: tfds.core.DatasetInfo(builder=self, features=features),
        '_split_generators': lambda self, _: {'train': enumerate(found)},
        '_generate_examples': lambda self: None,
    }
    with tfds.core.registered.skip_registration():
        builder = type('Shades', (tfds.core.GeneratorBasedBuilder,), methods)
    builder(data_dir=folder, file_format='array_record').download_and_prepare()
    return f'arrayrecord:{folder}/shades/1.0.0/*.array_record*'


@pytest.fixture(scope='module', params=[tars, array_records], ids=['webdataset', 'arrayrecord'])
def sources(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp('data')).replace(',', '\\,')


def test_twenty_steps(sources, tmp_path):
    run = tiny_run(tmp_path, {'data.sources': sources, 'steps': STEPS, 'data.sizes': ((32, 1.0),)})
    train_loop.train(run)
    assert checkpoint.exists_in(tmp_path)
    assert run.batches.counts['undecodable_images'] == 0
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['data']['sources'] == sources


def test_processes_compare_what_their_indices_say(sources, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(distributed, 'check_same', lambda *given: compared.append(given))
    tiny_run(tmp_path, {'data.sources': sources, 'data.sizes': ((32, 1.0),)})
    assert any(
        text.startswith('300 captions of') and field == 'data.sources' for text, field in compared
    )
