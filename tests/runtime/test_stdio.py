"""stdout and stderr that are closed, without a reader or ASCII only never end a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints to both, as commands do, continues, and writes a file at the end.
SCRIPT = r"""
import sys
from pathlib import Path
from absl import flags, logging
from rf_jax.runtime import cli
from rf_jax.runtime.errors import UserError

FILE = flags.DEFINE_string('file', None, '')
KIND = flags.DEFINE_string('kind', None, '')

def main(argv):
    for i in range(3000):
        print('pi\u00f1ata', i)
        logging.info('%s', 'pi\u00f1ata' * 30)
    Path(FILE.value).write_text('finished')
    if KIND.value == 'user error':
        raise UserError('pi\u00f1ata is not a flag')

cli.run(main)
"""


def run(tmp_path, redirected, kind='fine', **environment):
    """(exit code, output) of the script in a shell with these redirections."""
    done = subprocess.run(
        ['bash', '-c', f'set -o pipefail; "$@" {redirected}', 'bash', sys.executable, '-c', SCRIPT,
         f'--file={tmp_path}/file', f'--kind={kind}'],
        cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert (tmp_path / 'file').exists(), output[-2000:]
    assert 'Traceback' not in output and 'BrokenPipe' not in output, output[-2000:]
    return done.returncode, output


@pytest.mark.parametrize(
    'redirected', ['| head -1', '2>&1 | head -1', '>&-', '2>&-', '>&- 2>&- <&-']
)
def test_output_without_a_reader(tmp_path, redirected):
    assert run(tmp_path, redirected)[0] == 0


def test_the_exit_code_of_a_user_error_without_stdout_and_stderr(tmp_path):
    assert run(tmp_path, '>&- 2>&-', 'user error')[0] == 64


def test_an_ascii_terminal_gets_escaped_output(tmp_path):
    code, output = run(tmp_path, '', PYTHONIOENCODING='ascii')
    assert code == 0
    assert 'pi\\xf1ata 2999' in output
    assert run(tmp_path, '', LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')[0] == 0


@pytest.mark.parametrize('unbuffered', ['', '1'])
def test_stderr_output_is_not_lost_if_the_process_exits_immediately(unbuffered):
    script = (
        'import os, sys; from rf_jax.runtime import stdio; stdio.prepare(); '
        'print("last words", file=sys.stderr); os._exit(1)'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {'PYTHONUNBUFFERED': unbuffered},
    )  # fmt: skip
    assert done.stderr == 'last words\n'
