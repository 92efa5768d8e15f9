"""Adapters on pretrained weights, by two processes: as by one, and after they were killed."""

import json
import signal
import sys

import processes
import pytest
from small_bpe import small_bpe
from test_export import save
from weight_folders import DINOV3, QWEN3, config_of, loaded, write

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

DEVICES = 4  # over all processes
ROWS = 400  # of the vocabulary
STEPS, LAST = 5, 3
CHANGES = {
    'lora.rank': 2, 'lora.full': ('^(connector|representation_|patch_)',), 'steps': STEPS,
    'checkpoint.every': 1, 'evaluation.samples': 0,
}  # fmt: skip
# Writes a digest of each shard before the first step and after the last, and the number of values
# read before the first. A process with `last` is killed after so many steps.
TRAIN = """
import hashlib, json, os, signal, sys
from pathlib import Path
import jax
import numpy as np
from weight_folders import config_of
from rf_jax.interop.pretrained import Pretrained
from rf_jax.runtime import distributed
from rf_jax.runtime.checkpoint_files import flatten
from rf_jax.training import train_loop

distributed.start()
workdir, out = map(Path, sys.argv[1:3])
folders, changes, last = map(json.loads, sys.argv[3:])
amounts, read = [], Pretrained.read

def write(moment, state):
    found = {
        f'{path} {shard.index}': hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
        for path, leaf in flatten(state).items() for shard in leaf.addressable_shards
    }
    found = {'step': int(state.step), 'read': sum(amounts), 'shards': found}
    (out / f'{moment}.{jax.process_index()}.json').write_text(json.dumps(found))

def counted(*given):
    found = read(*given)
    amounts.append(found.size)
    return found

Pretrained.read = counted
run = train_loop.build(config_of(*folders, **changes), workdir)
train_step, done = run.train_step, []

def watched(state, batch):
    if not done:
        write('start', state)
    if len(done) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(None)
    return train_step(state, batch)

run.train_step = watched
write('end', train_loop.train(run))
distributed.finish()
"""


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp('models')
    text = write(top / 'qwen3', QWEN3 | {'vocab_size': ROWS})
    (text / 'tokenizer.json').write_text(small_bpe(), encoding='utf-8')
    return text, write(top / 'dinov3', DINOV3, seed=1)


@pytest.fixture(scope='module')
def earlier(folders, tmp_path_factory):
    """The folder of a run with what the weights lack."""
    config = config_of(*folders)
    _, state = loaded(config, vocabulary=ROWS)
    workdir = tmp_path_factory.mktemp('runs') / 'earlier'
    save(state.replace(codebook=state.codebook + 1), config, workdir)
    return workdir


@pytest.fixture
def train(folders, earlier, tmp_path):
    """`train(count, workdir, last)` by so many processes; gives what they wrote, by moment."""
    origins = ','.join([*(f'hf:{folder}' for folder in folders), str(earlier)])
    changes = CHANGES | {'initialise_from': origins}

    def call(count, workdir, last=None):
        out = tmp_path / f'{count} of {workdir}, {last}'
        out.mkdir()
        given = map(json.dumps, ([str(folder) for folder in folders], changes, last))
        command = [sys.executable, '-c', TRAIN, str(tmp_path / workdir), str(out), *given]
        started = processes.start(count, command, out, DEVICES)
        code = 0 if last is None else -signal.SIGKILL
        assert started.wait() == [code] * count, (out / '0.log').read_text()
        return {
            moment: [json.loads(path.read_text()) for path in sorted(out.glob(f'{moment}.*'))]
            for moment in ('start', 'end')
        }

    return call


def shards(found):
    return {place: digest for each in found for place, digest in each['shards'].items()}


def logged(workdir):
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


def test_two_processes_start_and_train_as_one_does_and_can_be_killed(train, tmp_path):
    """Bit by bit. The weights come from two folders and a run, sharded over all devices, and each
    process reads the slices of its own; they are read again to go on.
    """
    one, two = train(1, 'one'), train(2, 'two', last=LAST)
    assert shards(two['start']) == shards(one['start'])
    assert [each['read'] for each in two['start']] == [one['start'][0]['read'] / 2] * 2
    again = train(1, 'two')
    assert LAST - 1 <= again['start'][0]['step'] <= LAST, 'it resumes from a checkpoint'
    assert shards(again['end']) == shards(one['end'])
    assert [step for step, _ in logged(tmp_path / 'one')] == list(range(1, STEPS + 1))
    assert logged(tmp_path / 'two') == logged(tmp_path / 'one')
