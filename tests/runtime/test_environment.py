"""Environment variables are set before a process computes; stdout and stderr that are closed,
without a reader or ASCII only never end a command.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rf_jax.runtime import environment


def test_virtual_devices_get_threads_and_longer_timeouts():
    found = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8 --xla_dump_to=x'}
    environment.set_cpu_threads(found)
    assert int(found['PJRT_NPROC']) >= 16
    assert '--xla_dump_to=x --xla_cpu_collective_call_warn_stuck' in found['XLA_FLAGS']
    assert found['XLA_FLAGS'].count('terminate_timeout_seconds=') == 1
    again = dict(found)
    environment.set_cpu_threads(again)
    assert again == found


def test_processes_without_virtual_devices_are_unchanged():
    found = {'XLA_FLAGS': '--xla_dump_to=x'}
    environment.set_cpu_threads(found)
    assert found == {'XLA_FLAGS': '--xla_dump_to=x'}


def test_cores_are_those_of_the_process_or_all(monkeypatch):
    assert environment.cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
    assert environment.cores() == os.cpu_count()


def test_huge_pages_and_kept_memory_are_set_once(tmp_path, monkeypatch):
    setting = tmp_path / 'enabled'
    monkeypatch.setattr(environment, '_HUGE_PAGES', setting)
    monkeypatch.setattr(environment.platform, 'libc_ver', lambda: ('glibc', '2.36'))
    pod, laptop = {'JAX_PLATFORMS': 'tpu'}, {'JAX_PLATFORMS': 'cpu'}
    keep = (
        'glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776'
    )
    assert environment.malloc_tunables(pod) == '', 'no file: not Linux, or without huge pages'
    assert environment.malloc_tunables(laptop) == keep
    for text in ('[always] madvise never\n', 'always madvise [never]\n'):
        setting.write_text(text)
        assert environment.malloc_tunables(pod) == ''
    setting.write_text('always [madvise] never\n')
    assert environment.malloc_tunables(pod) == 'glibc.malloc.hugetlb=1'
    assert environment.malloc_tunables(laptop) == keep + ':glibc.malloc.hugetlb=1'
    assert not environment.malloc_tunables(
        laptop | {'GLIBC_TUNABLES': environment.malloc_tunables(laptop)}
    )
    own = {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=2'}
    assert environment.malloc_tunables(pod | own) == ''
    assert environment.malloc_tunables(laptop | own) == 'glibc.malloc.hugetlb=2:' + keep
    monkeypatch.setattr(environment.platform, 'libc_ver', lambda: ('', ''))
    assert environment.malloc_tunables(laptop) == ''


def test_a_command_reexecutes_itself_with_the_same_arguments(tmp_path):
    program = (
        'import os, sys\n'
        'from rf_jax.runtime import environment\n'
        'environment.platform.libc_ver = lambda: ("glibc", "2.36")\n'
        'print(os.getpid(), os.environ.get("OPENBLAS_NUM_THREADS"))\n'
        'environment.prepare()\n'
        'print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])\n'
    )
    plain = {k: v for k, v in os.environ.items() if k != 'OPENBLAS_NUM_THREADS'}
    done = subprocess.run(
        [sys.executable, '-c', program, 'a b', '--c=1'],
        env=plain | {'GLIBC_TUNABLES': 'glibc.malloc.check=0'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    first, second, last = done.stdout.splitlines()
    number, threads = first.split()
    assert threads == 'None' and second == f'{number} 1', 'the same process, started once again'
    assert last.startswith("['a b', '--c=1'] glibc.malloc.check=0:glibc.malloc.arena_max=1:")


@pytest.mark.parametrize(
    'asked, plugins, expected',
    [('cpu', ['cuda'], True), ('cuda,cpu', [], False), ('', [], True), ('', ['cuda'], False)],
)
def test_running_on_cpu_is_detected_before_jax_starts(asked, plugins, expected, monkeypatch):
    monkeypatch.setattr(environment, 'entry_points', lambda group: plugins)
    monkeypatch.setattr(environment.importlib.util, 'find_spec', lambda name: None)
    assert environment.on_cpu({'JAX_PLATFORMS': asked}) == expected


_STEPS = """
import resource, statistics
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.abs(x @ x.T) @ x)  # 64 MB between the products
x = jnp.ones((4096, 8))
counts = []
for _ in range(25):
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(statistics.median(b - a for a, b in zip(counts, counts[1:])))
"""


def test_a_step_takes_no_new_pages_from_the_kernel():
    def faults(tunables):
        done = subprocess.run(
            [sys.executable, '-c', _STEPS],
            env=plain | {'GLIBC_TUNABLES': tunables},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return float(done.stdout)

    plain = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    plain.pop('GLIBC_TUNABLES', None)
    asked = environment.malloc_tunables(plain)
    assert bool(asked) == (environment.platform.libc_ver()[0] == 'glibc')
    as_it_comes, kept = faults(''), faults(asked)
    assert as_it_comes > 0 or not asked, 'this jaxlib keeps its memory itself: tunables can go'
    # One or two faults a step are the interpreter's own, or pages that the kernel took back.
    assert kept <= as_it_comes / 10 or not asked


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
        'import os, sys; from rf_jax.runtime import environment; environment.make_output_robust(); '
        'print("last words", file=sys.stderr); os._exit(1)'
    )
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {'PYTHONUNBUFFERED': unbuffered},
    )  # fmt: skip
    assert done.stderr == 'last words\n'
