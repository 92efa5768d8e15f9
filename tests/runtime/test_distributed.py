"""Several processes train exactly as one does, stop after the same step, and end together."""

import json
import re
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import processes
import pytest
from shrink import CACHE
from small_bpe import small_bpe, write_weights

from configs import debug
from rf_jax.runtime import checkpoint_folder, distributed, errors
from rf_jax.runtime.errors import Unavailable, UserError
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

STEPS = 10
DEVICES = 4  # over all processes
COUNTS = [2, pytest.param(4, marks=pytest.mark.nightly)]
CHANGES = {'checkpoint.every': 4, 'log.every': 1, 'evaluation.samples': 2, 'sampling.steps': 1,
           'log.samples': 2, 'log.samples_every': 5, 'compilation_cache': CACHE,
           'validation.sources': 'emoji', 'validation.every': 5,
           'validation.batches': 1}  # fmt: skip


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ({}, None),
        ({'SLURM_JOB_ID': '1', 'SLURM_NTASKS': '4'}, None),  # inside sbatch, without srun
        ({'SLURM_STEP_NUM_TASKS': '1'}, None),
        ({'SLURM_STEP_NUM_TASKS': '4'}, {}),
        ({'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, {}),
        ({'RF_JAX_COORDINATOR': 'auto'}, {}),
    ],
)
def test_how_the_other_processes_are_detected(given, expected):
    assert distributed.arguments(given) == expected


def test_plain_addresses():
    given = dict(zip(distributed.VARIABLES, ('[::1]:8476', '1', '4')))
    found = distributed.arguments(given)
    assert found.pop('cluster_detection_method') == 'deactivate'
    assert found == {'coordinator_address': '[::1]:8476', 'process_id': 1, 'num_processes': 4}


@pytest.mark.parametrize(
    'values',
    [('a:80', '4', '4'), ('a:80', '-1', '4'), ('a', '0', '4'), (':80', '0', '1'),
     ('a:b', '0', '1'), ('a:80', '', '4'), ('a:80', '0', ''), ('a:99999', '0', '1')],
)  # fmt: skip
def test_invalid_addresses(values):
    with pytest.raises(UserError, match='expected host:port'):
        distributed.arguments(dict(zip(distributed.VARIABLES, values)))


def start(count, workdir, folder, **flags):
    """Runs `python -m rf_jax.train` as `count` processes with DEVICES devices in total."""
    flags = {'config.steps': STEPS, **{f'config.{k}': v for k, v in CHANGES.items()}, **flags}
    arguments = [f'--{name}={value}' for name, value in flags.items()]
    command = [sys.executable, '-m', 'rf_jax.train', '--config=configs/debug.py']
    command += [f'--workdir={workdir}', *arguments]
    return processes.start(count, command, folder, DEVICES)


def alone(workdir, steps=STEPS, devices=DEVICES, **changes):
    """The same run in this process, without samples."""
    config = debug.get_config()
    config.update_from_flattened_dict(CHANGES | {'steps': steps, 'log.samples_every': 0} | changes)
    train_loop.train(train_loop.build(config, workdir, jax.devices()[:devices]))
    return workdir


def log(folder, index=0):
    return (folder / f'{index}.log').read_text(errors='replace')


def logged(workdir):
    """{step: what metrics.jsonl says of it}."""
    path = Path(workdir) / 'metrics.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {}
    for line in lines:
        found[line['step']] = found.get(line['step'], {}) | line
    return {step: values for step, values in found.items() if 'loss' in values}


def assert_same_losses(workdir, other, steps=STEPS):
    a, b = logged(workdir), logged(other)
    assert list(a) == list(b)[:steps] == list(range(1, steps + 1))
    assert all('validation/loss' in run[step] for run in (a, b) for step in a if step % 5 == 0)
    others = 'gradient_norm', 'codes_used', 'skipped'
    for step in a:
        # A run that was continued was also validated at the end of its first part.
        for name in a[step].keys() & b[step].keys():
            if name.startswith(('loss', 'validation')) or name in others:
                # None: no token of that kind.
                pair = np.array([run[step][name] for run in (a, b)], float)
                np.testing.assert_allclose(*pair, rtol=1e-4, err_msg=f'{name} of step {step}')


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir() if p.name.isdecimal())


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """An uninterrupted run of one process on one device."""
    return alone(tmp_path_factory.mktemp('alone') / 'run', devices=1)


@pytest.mark.nightly
def test_processes_share_a_tokenizer_json(tmp_path):
    """Process 0 reads it and sends the others what it is."""
    pytest.importorskip('tokenizers')
    path = str(write_weights(tmp_path / 'weights', small_bpe(), rows=400))
    changes = {'tokenizer.path': path, 'data.max_text_tokens': 32, 'data.capacity.text': 64}
    flags = {f'config.{name}': value for name, value in changes.items()}
    flags |= {'config.steps': 2, 'config.log.samples_every': 0, 'config.evaluation.samples': 0}
    started = start(2, tmp_path / 'run', tmp_path / 'logs', **flags)
    assert started.wait() == [0, 0], log(tmp_path / 'logs')
    other = alone(tmp_path / 'alone', steps=2, devices=1, **changes)
    assert_same_losses(tmp_path / 'run', other, steps=2)
    assert [each.name for each in (tmp_path / 'run').glob('tokenizer.*')] == ['tokenizer.json']


@pytest.mark.parametrize('count', COUNTS)
def test_several_processes_resume_a_run_of_one(tmp_path, undisturbed, count):
    """With samples during training and an evaluation at the end, written by process 0 only."""
    workdir = alone(tmp_path / 'run', steps=3)
    started = start(count, workdir, tmp_path / 'logs')
    assert started.wait() == [0] * count, log(tmp_path / 'logs')
    assert_same_losses(workdir, undisturbed)
    assert f'Resumed {workdir} at step 3 of {STEPS}' in log(tmp_path / 'logs')
    names = {path.name for path in workdir.rglob('*')}
    assert names >= {'00000005.png', '00000005.txt', 'grid.png', 'result.json', 'goodput.json'}
    assert not [name for name in names if '.shared.' in name or '.probe.' in name]
    for index in range(count):
        assert ('goodput' in log(tmp_path / 'logs', index)) == (index == 0)
    ours, theirs = logged(workdir)[STEPS], logged(undisturbed)[STEPS]
    assert ours.keys() >= theirs.keys() >= {'goodput', 'seconds/compile', 'seconds/again'}


@pytest.mark.parametrize('count', COUNTS)
def test_all_processes_stop_after_the_same_step_and_one_process_resumes(
    tmp_path, undisturbed, count
):
    workdir, folder = tmp_path / 'run', tmp_path / 'logs'
    started = start(count, workdir, folder, **{'config.steps': 100_000})
    until(lambda: len(logged(workdir)) >= 2, started)
    started.processes[1].send_signal(signal.SIGTERM)
    assert started.wait() == [errors.INTERRUPTED] * count, log(folder)
    logs = [log(folder, index) for index in range(count)]
    steps = {int(re.search(r'Stopped by a signal at step (\d+), saved', text)[1]) for text in logs}
    assert steps == {saved(workdir)[-1]}
    if steps.pop() < STEPS:
        alone(workdir)
        assert_same_losses(workdir, undisturbed)


APART = """
import signal, sys
import jax
from configs import debug
from rf_jax.training import train_loop
from rf_jax.runtime import distributed

distributed.start()
config = debug.get_config()
config.update_from_flattened_dict(eval(sys.argv[2]))
config.mesh.update(fsdp=4, tensor=2)
own = [[d for d in jax.devices() if d.process_index == i] for i in range(2)]
# Two devices per block of rows: the first and the last block are on both processes.
run = train_loop.build(config, sys.argv[1], [own[i].pop(0) for i in (0, 1, 1, 1, 0, 0, 0, 1)])

def on_samples(number, ema, writer):
    if number == 1 and jax.process_index() == 1:
        signal.raise_signal(signal.SIGTERM)

state = train_loop.train(run, on_samples)
print('rows', run.batches.rows.tolist(), 'stopped', run.stopped, 'at', int(state.step))
distributed.finish()
"""


def test_processes_with_scattered_and_shared_rows_train_as_one_process_does(tmp_path, undisturbed):
    """They also stop after the same step, although only one of two replicas got the signal."""
    changes = CHANGES | {'steps': STEPS, 'log.samples_every': 1}
    workdir, folder = tmp_path / 'run', tmp_path / 'logs'
    command = [sys.executable, '-c', APART, str(workdir), repr(changes)]
    assert processes.start(2, command, folder, 8).wait() == [0, 0], log(folder)
    assert 'rows [0, 1, 4, 5, 6, 7] stopped True at 3' in log(folder, 0)
    assert 'rows [0, 1, 2, 3, 6, 7] stopped True at 3' in log(folder, 1)
    assert_same_losses(workdir, undisturbed, 3)


@pytest.mark.nightly
def test_a_signal_in_the_last_step_of_one_process_stops_all(tmp_path):
    """The step before has no more than told them that there was none."""
    changes = CHANGES | {'steps': 2, 'log.samples_every': 1, 'validation.sources': ''}
    folder = tmp_path / 'logs'
    command = [sys.executable, '-c', APART, str(tmp_path / 'run'), repr(changes)]
    assert processes.start(2, command, folder, 8).wait() == [0, 0], log(folder)
    for index in range(2):
        assert 'stopped True at 2' in log(folder, index)


def until(condition, started):
    while not condition():
        assert all(p.poll() is None for p in started.processes), 'ended too early'
        time.sleep(0.02)


@pytest.mark.parametrize('victim', [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_killing_one_process_ends_all_with_a_clear_message(tmp_path, victim):
    workdir, folder = tmp_path / 'run', tmp_path / 'logs'
    started = start(2, workdir, folder, **{'config.steps': 100_000})
    until((workdir / 'checkpoints' / '4').exists, started)
    started.processes[victim].send_signal(signal.SIGKILL)
    codes = started.wait(grace=60.0)
    assert codes[victim] == -signal.SIGKILL
    # Neither killed by the launcher nor successful, and step 4 is on disk.
    assert codes[1 - victim] == errors.FAILURE_AFTER_PROGRESS
    last = log(folder, 1 - victim).strip().splitlines()[-1]
    assert last.startswith(f'error: process {victim} of 2') and 'was lost' in last
    assert 'same command' in last
    assert 4 in saved(workdir)


def test_different_data_on_one_host_is_refused(monkeypatch):
    distributed.check_same('3 samples', 'data.sources')
    monkeypatch.setattr(distributed.jax, 'process_count', lambda: 3)
    monkeypatch.setattr(distributed, 'gather_texts', lambda text: [text, text, '2 samples'])
    with pytest.raises(UserError, match=r'data\.sources .* 0 has 3 samples; process 2 has 2 samp'):
        distributed.check_same('3 samples', 'data.sources')
    monkeypatch.setattr(distributed, 'gather_texts', lambda text: [text] * 3)
    distributed.check_same('3 samples', 'data.sources')


def test_hosts_that_list_different_checkpoints_do_not_restore_any(tmp_path, monkeypatch):
    """Each would restore its own newest, and the run would go on with a mixture."""
    assert checkpoint_folder.agreed_steps(tmp_path, [2, 10, 4]) == [10, 4, 2]
    monkeypatch.setattr(distributed.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed, 'gather_texts', lambda text: [text, 'the steps 4, 2'])
    with pytest.raises(Unavailable, match=r'listing of .* the steps 10, 4, 2; process 1 has'):
        checkpoint_folder.agreed_steps(tmp_path, [2, 10, 4])
    assert checkpoint_folder.agreed_steps(tmp_path, [2, 4]) == [4, 2]


@pytest.mark.parametrize('first, own', [(True, False), (False, True)])
def test_the_first_process_decides_whether_a_run_goes_on(tmp_path, monkeypatch, first, own):
    """Else one checks its initial weights and waits for the others, which go on."""
    called, answers = [], iter([str(first).encode()])
    monkeypatch.setattr(distributed, 'broadcast', lambda make: next(answers))
    monkeypatch.setattr(train_loop.checkpoint, 'exists_in', lambda folder: own)
    monkeypatch.setattr(train_loop.initial_weights, 'check', lambda config: called.append('new'))
    monkeypatch.setattr(train_loop.checks, 'check_version', lambda run: called.append('goes on'))
    config = debug.get_config()
    config.mesh.fsdp = 1
    with pytest.raises(StopIteration):  # at the next exchange
        monkeypatch.setattr(distributed, 'check_shared', distributed.broadcast)
        train_loop.build(config, tmp_path, jax.devices()[:1])
    assert called == ['goes on' if first else 'new']


def test_the_main_process_reads_the_data_first(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed, 'broadcast', lambda make: calls.append('main is done'))
    for first in (True, False):
        calls.clear()
        monkeypatch.setattr(distributed, 'is_main', lambda first=first: first)
        assert distributed.main_first(lambda: calls.append('read') or 'data') == 'data'
        assert calls == (['read', 'main is done'] if first else ['main is done', 'read'])


def test_a_workdir_that_hosts_do_not_share_is_refused(tmp_path):
    """Each process gets its own folder, as on hosts without a shared file system."""
    folder = tmp_path / 'logs'
    script = 'exec "$@" --workdir=$0/own$RF_JAX_PROCESS'
    command = [sys.executable, '-m', 'rf_jax.train', '--config=configs/debug.py']
    apart = ['bash', '-c', script, str(tmp_path), *command]
    started = processes.start(2, apart, folder, DEVICES)
    assert started.wait() == [errors.USER_ERROR] * 2
    for index in range(2):
        assert 'is not shared between the hosts: process 1 cannot see' in log(folder, index)
        assert 'Traceback' not in log(folder, index)
