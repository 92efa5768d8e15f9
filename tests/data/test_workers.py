"""workers.py: batches made in other processes are the same ones, and end as the run ends."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import environment
from PIL import Image

from configs import base
from rf_jax.data import source_list, workers
from rf_jax.data.pipeline import Batches
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.slots import Slots
from rf_jax.runtime.errors import Unavailable, UserError

TOKENIZER = SentencePieceTokenizer.train(['an image of a cat, small', 'a red dog'], 300)


def config_of(folder, count=40, damaged=(7,), **data):
    """Images in a folder, some of them truncated after a valid header."""
    lines = []
    for i in range(count):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(file, 'PNG')
        kept = 400 if i in damaged else None
        (folder / f'{i}.png').write_bytes(file.getvalue()[:kept])
        lines.append(json.dumps({'file': f'{i}.png', 'caption': f'cat number {i}, and a dog'}))
    (folder / 'captions.jsonl').write_text('\n'.join(lines))
    config = base.get_config()
    config.data.sources = f'folder:{folder}'
    config.data.update(
        {'patch_size': 4, 'sizes': ((32, 1.0),), 'batch_size': 4, 'max_text_tokens': 12, 'lanes': 4}
        | data
    )
    config.data.capacity.update(
        text=40, vision=32, representation=40, pixels=128, vision_images=3, pixel_images=4
    )
    return config


def batches_of(config, rows=None):
    found = source_list.build(config.data.sources, config.data.max_pixels)
    return Batches(config, found, TOKENIZER, rows)


@pytest.mark.slow
@pytest.mark.parametrize('rows', [pytest.param([0, 1, 2, 3], marks=pytest.mark.nightly), [0, 3]])
def test_batches_and_counts_do_not_depend_on_the_workers(tmp_path, monkeypatch, rows):
    in_slots, joined = [], workers._joined

    def seen(number, batches, slots):
        in_slots.extend(batch is None for batch in batches)
        return joined(number, batches, slots)

    monkeypatch.setattr(workers, '_joined', seen)
    config = config_of(tmp_path)
    here = batches_of(config, rows)
    wanted = [here.batch(step) for step in range(3, 30)]
    config.data.update(workers=2, threads=2)
    there = batches_of(config, rows)
    found = list(there.iterate(3, 30))  # more than twice round the slots of a worker
    assert len(found) == len(wanted) and in_slots == 2 * len(wanted) * [True]
    for one, other in zip(found, wanted):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert there.counts == here.counts and here.counts['undecodable_images'] > 1
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_what_a_worker_raises_ends_the_run(tmp_path):
    config = config_of(tmp_path, damaged=range(40), workers=2)
    with pytest.raises(UserError, match='consecutive images cannot be decoded'):
        list(batches_of(config).iterate(0, 200))


@pytest.mark.slow
def test_a_killed_worker_is_one_line(tmp_path):
    found = batches_of(config_of(tmp_path, workers=2)).iterate(0, 10**6)
    next(found)
    worker = multiprocessing.active_children()[0].pid
    os.kill(worker, signal.SIGTERM)  # which a scheduler sends to all processes; the run ends later
    for _ in range(30):  # more than are prefetched
        next(found)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(Unavailable, match=r'data\.workers was killed .*-9.*too little memory'):
        for _ in range(10**4):
            next(found)
    assert not multiprocessing.active_children()


def test_workers_divide_the_lanes_of_a_process(tmp_path):
    config = config_of(tmp_path, workers=3)
    with pytest.raises(UserError, match=r'data\.workers=3 must divide the 4 lanes of this process'):
        batches_of(config)
    config.data.update(workers=2, batch_size=8)
    shares = workers.shares(config.data, np.array([0, 1, 6, 7]))
    assert [share.tolist() for share in shares] == [[0, 1], [6, 7]]


class Slow(Counter):
    """What is taken from it is gone a while later, so that two threads take it."""

    def pop(self, name):
        time.sleep(0.01)
        return super().pop(name)


def test_threads_of_a_worker_report_each_count_once():
    counts = Slow()

    def batch(step):
        counts[f'kind {step % 2}'] += 1
        time.sleep(0.001)

    opened = SimpleNamespace(batch=batch, counts=counts)
    parts = workers._Parts(lambda rows: opened, [[0]], range(40), [Slots({}, 0)])
    found = Counter()
    with ThreadPoolExecutor(4) as pool:
        for part in pool.map(parts.__getitem__, range(40)):
            found.update(part['counts'])
    assert found == {'kind 0': 20, 'kind 1': 20}


@pytest.mark.slow
@pytest.mark.parametrize(
    'by', [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.nightly)]
)
def test_a_run_and_its_workers_end_together(tmp_path, by):
    config = ['--config=configs/debug.py', '--config.data.workers=2', '--config.data.lanes=2']
    command = [sys.executable, '-m', 'rf_jax.train', *config, '--config.steps=100000']
    run = subprocess.Popen(
        [*command, f'--workdir={tmp_path}/run'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, env=environment(),
    )  # fmt: skip
    said = []
    for line in iter(run.stdout.readline, ''):
        said.append(line)
        if line.startswith('step 20/'):
            break
    if by == signal.SIGKILL:
        run.kill()
    else:  # as a scheduler does: to all of its processes
        os.killpg(run.pid, by)
    said.append(run.communicate(timeout=120)[0])  # which waits for the workers: theirs too
    assert run.returncode == (-9 if by == signal.SIGKILL else 75), ''.join(said)
    assert 'Traceback' not in ''.join(said)
