"""Real processes read each sample of shards once a pass, also if their number changes."""

import json
import re
import sys
from collections import Counter

import prepared_set
import processes
import pytest
from shrink import CACHE

from rf_jax.data.shards.tar import TarWriter

pytestmark = pytest.mark.slow

DEVICES = 4  # over all processes
SAMPLES = {'prepared': 96, 'webdataset': 64}

PROGRAM = """
import json, sys
import jax
from configs import debug
from rf_jax.data import lanes
from rf_jax.data.pipeline import Batches
from rf_jax.runtime import distributed
from rf_jax.training import train_loop

distributed.start()
read, make = [], Batches._row

def row(self, examples):
    read.extend((e.task, e.index, e.epoch) for e in examples)
    return make(self, examples)

Batches._row = row
lanes.WINDOW = 16  # examples; a window holds many passes of so small a set
config = debug.get_config()
config.update_from_flattened_dict(json.loads(sys.argv[2]))
run = train_loop.build(config, sys.argv[1], jax.devices())
train_loop.train(run)
print('read', json.dumps(read))
pools = run.batches.pools.items()
print('pools', json.dumps({task: len(p) for task, p in pools if task.startswith('text_to_image')}))
distributed.finish()
"""


def tar(folder):
    folder.mkdir()
    with open(folder / '00000.tar', 'wb') as file:
        writer = TarWriter(file)
        for number in range(SAMPLES['webdataset']):
            image, text = prepared_set.png(32, 32, number), f'two dogs {number}'
            writer.add(f'{number:09d}', {'png': image, 'txt': text.encode()})
        writer.end()
    return f'webdataset:{folder}/*.tar'


def fields(folder):
    tokenizer = prepared_set.tokenizer()
    (folder / 'set').mkdir()
    prepared = prepared_set.write(folder / 'set', tokenizer, (SAMPLES['prepared'],))
    return {
        'data.sources': f'{prepared},{tar(folder / "tars")}',
        'data.lanes': 4,
        'data.sizes': ((32, 1.0),),
        'data.tasks.image_to_text': 0.0,
        'data.capacity': {'text': 48, 'vision': 0, 'representation': 4, 'pixels': 8}
        | {'vision_images': 0, 'pixel_images': 2},
        'data.threads': 2,
        'compilation_cache': CACHE,
        'evaluation.samples': 0,
        'log.samples_every': 0,
    }


def run(count, workdir, folder, given):
    """([task, index, epoch] that the processes have read, {task: examples})"""
    command = [sys.executable, '-c', PROGRAM, str(workdir), json.dumps(given)]
    started = processes.start(count, command, folder, DEVICES)
    logs = [folder / f'{index}.log' for index in range(count)]
    assert started.wait() == [0] * count, logs[0].read_text()[-3000:]
    found = {'read': [], 'pools': []}
    for log in logs:
        for name, line in re.findall(r'^(read|pools) (.*)$', log.read_text(), re.M):
            found[name].append(json.loads(line))
    assert [len(each) for each in found.values()] == [count, count]
    assert all(found['read']), 'every process reads'
    return [each for read in found['read'] for each in read], found['pools'][0]


@pytest.mark.parametrize('counts', [(2, 1), pytest.param((2, 4), marks=pytest.mark.nightly)])
def test_each_sample_is_read_once_a_pass_by_processes_whose_number_changes(counts, tmp_path):
    given, read = fields(tmp_path), []
    for count, steps in zip(counts, (6, 16)):
        more, sizes = run(
            count, tmp_path / 'run', tmp_path / f'logs_{count}', given | {'steps': steps}
        )
        read += more
    assert sum(sizes.values()) == sum(SAMPLES.values())
    first = Counter((task, index) for task, index, epoch in read if epoch == 0)
    assert first == {(task, index): 1 for task, size in sizes.items() for index in range(size)}
    assert max(epoch for _, _, epoch in read) == 1, (
        'the second pass has begun, so the first was whole'
    )
