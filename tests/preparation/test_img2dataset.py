"""Tar files and Parquet that img2dataset itself wrote, from a list of URLs on this machine."""

import csv
import functools
import http.server
import importlib.util
import subprocess
import sys
import threading

import pytest
from prepare_inputs import caption, encoded, keys, picture, prepare, shards

pytest.importorskip('apache_beam')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not importlib.util.find_spec('img2dataset'), reason='needs img2dataset'),
]
COUNT = 60


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def urls(tmp_path_factory):
    """A list of URLs with captions; one leads nowhere."""
    folder = tmp_path_factory.mktemp('www')
    for n in range(COUNT):
        (folder / f'{n}.jpg').write_bytes(encoded(picture(n, 400)))
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = folder / 'list.csv'
        with open(path, 'w', newline='') as file:
            address = f'http://127.0.0.1:{server.server_port}'
            rows = [(f'{address}/{n}.jpg', caption(n)) for n in range(COUNT + 1)]
            csv.writer(file).writerows([('url', 'caption'), *rows])
        yield path
        server.shutdown()


@pytest.mark.parametrize('format', ['webdataset', 'parquet'])
def test_what_img2dataset_wrote(urls, tmp_path, format):
    written, out = tmp_path / 'written', tmp_path / 'set'
    options = {
        'url_list': str(urls), 'input_format': 'csv', 'url_col': 'url', 'caption_col': 'caption',
        'output_format': format, 'output_folder': str(written), 'image_size': 128,
        'resize_mode': 'keep_ratio', 'processes_count': 1, 'thread_count': 4,
        'number_sample_per_shard': 25,
    }  # fmt: skip
    script = f'from img2dataset import download; download(**{options!r})'
    subprocess.run([sys.executable, '-c', script], check=True, capture_output=True)
    found = prepare(f'{format}:{written}', out, size=64)
    assert len(set(keys(out, found))) == found.samples('captions') == COUNT
    opened = shards(out, found)
    read = sorted(opened.read(number).captions for number in range(COUNT))
    assert read == sorted((caption(n),) for n in range(COUNT))
    assert found.left_out == ({} if format == 'webdataset' else {'bad image': 1})
