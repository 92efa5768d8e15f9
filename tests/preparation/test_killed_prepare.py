"""The command as a process of its own: killed and started again, alone in its folder."""

import filecmp
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, command
from prepare_inputs import keys, prepare, write_tar
from waiting import until

from rf_jax.data.shards import set_file
from rf_jax.preparation import files, local_worker
from rf_jax.runtime import workdir

pytest.importorskip('apache_beam')
pytestmark = pytest.mark.slow
TARS, PER_TAR, KILLS = 12, 50, 5
FLAGS = ('--size=160', '--shard_megabytes=1', '--vocabulary=400', '--workers=2')


@pytest.fixture(scope='module')
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp('tars')
    for number in range(TARS):
        first = 1000 * number
        numbers = range(first, first + PER_TAR)
        write_tar(folder / f'{number:02d}.tar', numbers, range(first + 500, first + 503), 200)
    return folder


def start(tars, out, output=subprocess.DEVNULL):
    return subprocess.Popen(
        [sys.executable, '-m', 'rf_jax.prepare', f'--source=webdataset:{tars}', f'--out={out}',
         *FLAGS],
        cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, start_new_session=True,
        stdout=output, stderr=output, text=True,
    )  # fmt: skip


def done(out):
    """Units and shards."""
    names = os.listdir(out / 'cleaned') if (out / 'cleaned').exists() else []
    return sum(bool(re.match(r'[0-9a-f]{16}\.(\w+-\d+\.)?json$', name)) for name in names)


def alive(session):
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = stat.read_text().rpartition(')')[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session and fields[0] != 'Z':
            return True
    return False


def test_killed_at_random_moments_nothing_is_lost_or_doubled(tars, tmp_path):
    rng, out = random.Random(0), tmp_path / 'killed'
    for moment in sorted(rng.sample(range(TARS + 3), KILLS)):
        process = start(tars, out)
        until(lambda: done(out) >= moment or process.poll() is not None)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, 'it ended before'
        until(lambda: not alive(process.pid))  # noqa: B023
    assert start(tars, out).wait() == 0
    whole = tmp_path / 'whole'
    found = prepare(f'webdataset:{tars}', whole, size=160)
    assert set_file.read(str(out)) == found and len(found.shards['captions']) > 2
    assert len(set(keys(whole, found))) == TARS * PER_TAR
    names = sorted(set(os.listdir(out)) - {'.lock', 'prepare.json'})
    assert names == sorted(set(os.listdir(whole)) - {'prepare.json'})
    assert filecmp.cmpfiles(out, whole, names, shallow=False)[1:] == ([], [])
    again = command('prepare', f'--source=webdataset:{tars}', f'--out={out}', *FLAGS)
    assert f'{out}: 600 captions in 4 shards and 36 conversations in 1 shards' in again


def test_a_worker_that_is_killed_ends_the_command(tars, tmp_path):
    log = tmp_path / 'log'
    with open(log, 'w') as output:
        process = start(tars, tmp_path / 'set', output)
        until(lambda: done(tmp_path / 'set') or process.poll() is not None)
        children = Path(f'/proc/{process.pid}/task').glob('*/children')
        workers = [pid for file in children for pid in file.read_text().split()]
        os.kill(int(workers[0]), signal.SIGKILL)
        assert process.wait() == 1, log.read_text()
    assert 'a worker process ended with code -9' in log.read_text()
    assert 'Traceback' not in log.read_text()
    until(lambda: not alive(process.pid))


def test_one_at_a_time_in_a_folder(tars, tmp_path):
    arguments = ('prepare', f'--source=webdataset:{tars}', f'--out={tmp_path}', *FLAGS)
    with workdir.lock(tmp_path):
        assert 'another process prepares' in command(*arguments, code=1)


def test_one_at_a_time_on_this_machine_for_a_bucket(tars):
    out = 'gs://rf-jax-no-such-bucket/set'
    with workdir.lock(files.temporary_folder(out)):
        command_line = ('prepare', f'--source=webdataset:{tars}', f'--out={out}', *FLAGS)
        assert 'another process prepares' in command(*command_line, code=1)


def test_a_flag_that_beam_does_not_know_is_named(tars, tmp_path):
    arguments = ('prepare', f'--source=webdataset:{tars}', f'--out={tmp_path}/set', *FLAGS)
    line = command(*arguments, '--direct_num_worker=3', code=64)
    assert '--direct_num_worker is a flag neither' in line and '--direct_num_workers?' in line
    assert not (tmp_path / 'set').exists()


def test_a_worker_that_starts_after_the_command_was_killed_ends_in_silence():
    gone = subprocess.Popen(['true'])
    gone.wait()
    done = subprocess.run(
        [sys.executable, '-m', local_worker.__name__],
        cwd=ROOT, env=os.environ | {local_worker.PARENT: str(gone.pid)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, '', '')
