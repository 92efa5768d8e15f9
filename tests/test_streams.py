"""Standard output and error without a reader, closed, or ASCII only never end a command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Prints on both, as commands do, works on, and leaves a file that says so.
SCRIPT = r"""
import sys
from pathlib import Path
from absl import logging
from rf_jax.runtime import command
from rf_jax.runtime.errors import UserError

def main(argv):
    for i in range(3000):
        print('pi\u00f1ata', i)
        logging.info('%s', 'pi\u00f1ata' * 30)
    Path(argv[1]).write_text('worked on')
    if argv[2] == 'mistake':
        raise UserError('pi\u00f1ata is no flag')

command.run(main)
"""


def run(tmp_path, redirected, kind='fine', **environment):
    """(exit code, what came out) of the script under a shell with these redirections."""
    done = subprocess.run(
        ['bash', '-c', f'set -o pipefail; "$@" {redirected}', 'bash', sys.executable, '-c', SCRIPT,
         str(tmp_path / 'file'), kind],
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
def test_streams_that_nobody_reads(tmp_path, redirected):
    assert run(tmp_path, redirected)[0] == 0


def test_the_exit_code_of_a_mistake_without_streams(tmp_path):
    assert run(tmp_path, '>&- 2>&-', 'mistake')[0] == 64


def test_an_ascii_terminal_is_shown_what_it_can_show(tmp_path):
    code, output = run(tmp_path, '', PYTHONIOENCODING='ascii')
    assert code == 0
    assert 'pi\\xf1ata 2999' in output
    assert run(tmp_path, '', LC_ALL='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')[0] == 0
