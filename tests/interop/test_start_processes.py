"""Two processes start from folders of weights, and train, as one process does."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest
from small_bpe import small_bpe
from test_export import save
from weight_folders import DINOV3, QWEN3, config_of, loaded, write

from rf_jax.interop.pretrained import Pretrained

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('quick')]

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS.parent / 'launch'))
local = importlib.import_module('local')  # a script outside the package

DEVICES = 4  # over all processes
ROWS = 400  # of the vocabulary
NEW = ('^(connector|representation_|patch_)',)
CASES = {
    'folders and a run': {},
    'adapters': {'lora.rank': 2, 'lora.full': NEW},  # beside what is new and trained in full
}
# Prints the shards of the state before the first step and after the last, and what was read.
TRAIN = """
import hashlib, json, sys
from pathlib import Path
import jax
import numpy as np
from weight_folders import config_of
from rf_jax.interop.pretrained import Pretrained
from rf_jax.runtime import distributed
from rf_jax.runtime.checkpoint_files import flatten
from rf_jax.training import train_loop

distributed.start()
workdir, folders, changes = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])

def digests(state):
    return {
        f'{path} {shard.index}': hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
        for path, leaf in flatten(state).items() for shard in leaf.addressable_shards
    }

amount, read = [], Pretrained.read
def counted(*given):
    found = read(*given)
    amount.append(found.size)
    return found
Pretrained.read = counted

config = config_of(*folders, **changes)
run = train_loop.build(config, workdir)
start, train_step = {}, run.train_step
def first(state, batch):
    start.update(start or digests(state))
    return train_step(state, batch)
run.train_step = first
end = digests(train_loop.train(run))
found = {'start': start, 'end': end, 'read': sum(amount)}
(workdir / f'found.{jax.process_index()}.json').write_text(json.dumps(found))
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
    """The folder of a run that started from other weights."""
    config = config_of(*folders)
    _, state = loaded(config, vocabulary=ROWS)
    workdir = tmp_path_factory.mktemp('runs') / 'earlier'
    save(state.replace(codebook=state.codebook + 1), config, workdir)
    return workdir


def trained(count, workdir, folders, changes):
    """What the processes found, shards of all together; {step: logged values}."""
    environment = {
        **os.environ,
        'XLA_FLAGS': re.sub(
            r'(device_count)=\d+', rf'\1={DEVICES // count}', os.environ['XLA_FLAGS']
        ),
        'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
        'PYTHONPATH': os.pathsep.join([str(TESTS), os.environ.get('PYTHONPATH', '')]),
    }
    given = json.dumps([str(folder) for folder in folders]), json.dumps(changes)
    command = [sys.executable, '-c', TRAIN, str(workdir), *given]
    logs = workdir.parent / f'{workdir.name}.logs'
    processes = local.Processes(count, command, logs, environment, False, TESTS.parent)
    assert processes.wait() == [0] * count, (logs / '0.log').read_text()
    found = [json.loads((workdir / f'found.{i}.json').read_text()) for i in range(count)]
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    losses = {line['step']: line['loss'] for line in lines if 'loss' in line}
    return found, losses


@pytest.mark.parametrize('case', CASES)
def test_two_processes_start_and_train_as_one_does(case, folders, earlier, tmp_path):
    """Bit by bit; and each has read the slices of its own devices."""
    changes = CASES[case] | {'steps': 2, 'evaluation.samples': 0}
    if case != 'adapters':
        origins = [*(f'hf:{folder}' for folder in folders), str(earlier)]
        changes['initialise_from'] = ','.join(origins)
    ((one,), losses), (two, same) = (
        trained(count, tmp_path / str(count), folders, changes) for count in (1, 2)
    )
    for moment in ('start', 'end'):
        together = two[0][moment] | two[1][moment]
        assert together.keys() == one[moment].keys()
        assert [path for path in together if together[path] != one[moment][path]] == [], moment
    assert list(losses) == [1, 2] and losses == same
    print(one['read'], [each['read'] for each in two], sum(
        leaf.size for leaf in ()))
