"""Exit codes of real processes, which tell a launcher what to do next."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from shrink import CACHE

from rf_jax.runtime import cli, errors
from rf_jax.runtime.errors import Unavailable, UserError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Trains with an injected error: `where` is module:class.method or module:function.
FAULTY = """
import functools, importlib, runpy, sys
where, number = sys.argv.pop(), int(sys.argv.pop())
module, _, name = where.partition(':')
owner = functools.reduce(getattr, name.split('.')[:-1], importlib.import_module(module))
last, calls = name.split('.')[-1], []
original = getattr(owner, last)

def faulty(*arguments, **named):
    calls.append(1)
    if len(calls) == number:
        raise ZeroDivisionError('a fault of ours')
    return original(*arguments, **named)

setattr(owner, last, faulty)
runpy.run_module('rf_jax.train', run_name='__main__', alter_sys=True)
"""


def command(workdir, **changes):
    flags = {'steps': 4, 'checkpoint.every': 2, 'log.every': 1, 'evaluation.samples': 0,
             'compilation_cache': CACHE, **changes}  # fmt: skip
    fields = [f'--config.{name}={value}' for name, value in flags.items()]
    return ['--config=configs/debug.py', f'--workdir={workdir}', *fields]


def train(*start, workdir, after=(), **changes):
    return subprocess.run(
        [sys.executable, *start, *command(workdir, **changes), *after],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('step', 'code'), [('2', errors.FAILURE), ('4', errors.FAILURE_AFTER_PROGRESS)]
)
def test_the_exit_code_of_a_crash_depends_on_checkpoints_saved_since_the_start(
    tmp_path, step, code
):
    where = 'rf_jax.training.step_metrics:StepMetrics.push'
    done = train('-c', FAULTY, workdir=tmp_path / 'run', after=[step, where])
    assert done.returncode == code, done.stderr
    assert 'ZeroDivisionError: a fault of ours' in done.stderr


def test_a_failed_evaluation_does_not_fail_the_training(tmp_path):
    where = 'rf_jax.evaluation.run_report:at_end'
    changes = {'steps': 2, 'evaluation.samples': 2}
    done = train('-c', FAULTY, workdir=tmp_path / 'run', after=['1', where], **changes)
    assert done.returncode == errors.DONE, done.stderr
    assert 'ZeroDivisionError: a fault of ours' in done.stderr
    assert f'python -m rf_jax.evaluate --workdir={tmp_path}/run' in done.stderr
    assert (tmp_path / 'run' / 'checkpoints' / '2').is_dir()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_step_counts_as_an_interruption(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, '-m', 'rf_jax.train', *command(tmp_path / 'run')],
        cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert any('Training a SentencePiece tokenizer' in line for line in process.stderr)
    process.send_signal(number)
    rest = process.communicate(timeout=600)[1]
    assert process.returncode == errors.INTERRUPTED, rest
    assert 'Traceback' not in rest


def test_a_temporary_obstacle_is_not_a_user_error():
    assert UserError.code == errors.USER_ERROR
    assert Unavailable('locked').code == errors.FAILURE


@pytest.mark.parametrize('saved, code', [(False, 'FAILURE'), (True, 'FAILURE_AFTER_PROGRESS')])
def test_an_outage_after_progress_restarts_the_run(capsys, saved, code):
    if saved:
        errors.record_progress()
    with pytest.raises(SystemExit) as ended:
        cli._exit(Unavailable('gs://bucket: unreachable'))
    assert ended.value.code == getattr(errors, code)
    assert capsys.readouterr().err == 'error: gs://bucket: unreachable\n'


def test_a_device_without_memory_says_where_to_look(capsys):
    with pytest.raises(SystemExit) as ended:
        cli._exit(RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.'))
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('error: a device is out of memory')
    page, _, heading = re.search(r'docs/\S+', last)[0].partition('#')
    assert f'## {heading.replace("-", " ").capitalize()}' in (ROOT / page).read_text()
    assert ended.value.code == errors.FAILURE


STUCK = """
import threading
from rf_jax.runtime import cli
from rf_jax.runtime.errors import UserError

def main(_):
    threading.Thread(target=threading.Event().wait).start()
    raise UserError('the bucket is gone')

cli._PATIENCE = 0.1
cli.run(main)
"""


def test_a_thread_that_waits_does_not_keep_a_failed_process(tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', STUCK],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (errors.USER_ERROR, 'error: the bucket is gone\n')


@pytest.mark.nightly
def test_a_full_disk_logs_one_line_per_save_and_no_traceback(tmp_path):
    """Files may not grow beyond 500 kB, which makes real writes fail as on a full disk."""
    script = 'ulimit -f 500; exec "$@"'
    done = subprocess.run(
        ['bash', '-c', script, 'bash', sys.executable, '-m', 'rf_jax.train',
         *command(tmp_path / 'run', compilation_cache='')],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == errors.USER_ERROR, 'it would fail again'
    lines = done.stderr.splitlines()
    assert 'Traceback' not in done.stderr and len(lines) < 100, done.stderr
    assert sum('was NOT saved' in line and 'File too large' in line for line in lines) == 3
    assert lines[-1].startswith('error: the checkpoint of step 4 could not be saved')


def test_progress_is_a_checkpoint_that_was_not_there_at_the_start():
    steps = [5]
    errors.watch_checkpoints('folder', lambda folder: steps[-1])
    assert errors.failure_code() == errors.FAILURE
    steps.append(6)
    assert errors.failure_code() == errors.FAILURE_AFTER_PROGRESS
