"""`launch/local.py`: N processes with a log each, ending together; and checks of all scripts."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LAUNCH = Path(__file__).parents[2] / 'launch'
sys.path.insert(0, str(LAUNCH))
local = importlib.import_module('local')


def launch(*arguments, logs=''):
    return subprocess.run(
        [LAUNCH / 'local.py', *arguments],
        env=os.environ | {'RF_JAX_LOGS': str(logs)},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_each_process_gets_its_index_and_a_log(tmp_path):
    script = 'echo $RF_JAX_PROCESS of $RF_JAX_PROCESSES at $RF_JAX_COORDINATOR; echo bad >&2'
    done = launch('3', 'sh', '-c', script, logs=tmp_path / 'logs')
    assert done.returncode == 0
    output = dict(line.split(' ', 1) for line in done.stdout.splitlines() if 'of' in line)
    assert output.keys() == {'[0]', '[1]', '[2]'}
    assert len({text.split(' at ')[1] for text in output.values()}) == 1, 'one coordinator'
    for index in range(3):
        assert output[f'[{index}]'].startswith(f'{index} of 3 at 127.0.0.1:')
        assert f'[{index}] bad' in done.stdout
        assert (tmp_path / 'logs' / f'{index}.log').read_text().endswith('bad\n')


@pytest.mark.parametrize(('how', 'code'), [('exit 3', 3), ('kill -9 $$', 128 + signal.SIGKILL)])
def test_the_exit_code_of_a_failed_process_is_returned(tmp_path, how, code):
    script = f'if [ $RF_JAX_PROCESS = 1 ]; then {how}; fi'
    done = launch('2', 'sh', '-c', script, logs=tmp_path)
    assert done.returncode == code
    assert 'process 1' in done.stderr


def test_the_other_processes_do_not_outlive_a_failed_one(tmp_path):
    script = 'if [ $RF_JAX_PROCESS = 1 ]; then exit 3; fi; exec sleep 1000'
    codes = local.Processes(3, ['sh', '-c', script], tmp_path).wait(grace=0.2)
    assert codes == [-signal.SIGKILL, 3, -signal.SIGKILL]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_process(tmp_path, number):
    script = 'trap "echo got it; exit 0" INT TERM; echo ready; while :; do sleep 0.05; done'
    process = subprocess.Popen(
        # Started with both signals ignored, as Ctrl-C is in background jobs.
        [
            'sh',
            '-c',
            'trap "" INT TERM; exec "$@"',
            'sh',
            LAUNCH / 'local.py',
            '2',
            'sh',
            '-c',
            script,
        ],
        env=os.environ | {'RF_JAX_LOGS': str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [process.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ['[0] ready\n', '[1] ready\n']
    process.send_signal(number)
    rest = process.communicate(timeout=100)[0]
    assert process.returncode == 0
    assert sorted(rest.splitlines()) == ['[0] got it', '[1] got it']


def test_processes_continue_when_their_output_has_no_reader(tmp_path):
    """`launch/local.py ... | head -1`: a process whose pipe is full would block forever."""
    script = 'head -c 1000000 /dev/zero | tr "\\0" "\\n"; echo ended'
    done = subprocess.run(
        ['bash', '-c', '"$@" | head -1; exit ${PIPESTATUS[0]}', 'bash', LAUNCH / 'local.py', '2',
         'sh', '-c', script],
        env=os.environ | {'RF_JAX_LOGS': str(tmp_path)}, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0
    for index in range(2):
        assert (tmp_path / f'{index}.log').read_text().endswith('ended\n')


@pytest.mark.parametrize('arguments', [(), ('2',), ('x', 'true'), ('0', 'true')])
def test_wrong_usage(arguments):
    done = launch(*arguments)
    assert done.returncode == 2 and 'usage' in done.stderr


def test_the_gke_job_is_filled_in():
    done = subprocess.run(
        [LAUNCH / 'gke.sh', 'mine', '--config=configs/emoji.py', '--workdir=/runs/it is "new"'],
        env=os.environ
        | {'IMAGE': 'here/rf', 'CLAIM': 'runs', 'HOSTS': '4', 'TOPOLOGY': '4x4', 'DRY': '1'},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert '$' not in done.stdout
    for line in ('name: mine', 'subdomain: mine', 'image: here/rf', 'parallelism: 4'):
        assert line in done.stdout
    assert r'"--workdir=/runs/it is \"new\""' in done.stdout


@pytest.mark.parametrize('path', sorted(LAUNCH.glob('*.sh')), ids=lambda path: path.name)
def test_scripts_are_bash(path):
    subprocess.run(['bash', '-n', path], check=True)
    assert os.access(path, os.X_OK)
