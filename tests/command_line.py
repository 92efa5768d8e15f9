"""Commands of the package as processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(module: str, *arguments: object, code: int = 0) -> str:
    """Output of `python -m rf_jax.<module>`; checks the exit code, and that nothing is a traceback
    where an error is expected."""
    done = subprocess.run(
        [sys.executable, '-m', f'rf_jax.{module}', *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    if code:
        assert 'Traceback' not in output, output
    return output


def environment(**changes: str) -> dict[str, str]:
    """Of a command on one device."""
    flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS'])
    return os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags} | changes


def relative(path: Path) -> str:
    """As people type it, from where the commands run."""
    return os.path.relpath(path, ROOT)
