"""What a process that computes on CPUs needs in its environment before it begins."""

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path

_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
# One heap from which large blocks come too, and which gives nothing back.
_KEEP = {'arena_max': 1, 'mmap_max': 0, 'trim_threshold': 2**40}
_PRETENDED = re.compile(r'--xla_force_host_platform_device_count=(\d+)')


def give_threads(environment: MutableMapping[str, str]) -> None:
    """Threads and patience for pretended CPU devices; call before the first computation.

    XLA has one thread a device and each waits in a collective for all others. Beside other work
    on few cores they starve: the process hangs, or aborts after 40 s.
    """
    flags = environment.get('XLA_FLAGS', '')
    found = _PRETENDED.search(flags)
    if not found:
        return
    environment.setdefault('PJRT_NPROC', str(3 * int(found[1])))
    for name, seconds in (('warn_stuck', 120), ('terminate', 1200)):
        flag = f'--xla_cpu_collective_call_{name}_timeout_seconds'
        if flag not in flags:
            flags += f' {flag}={seconds}'
    environment['XLA_FLAGS'] = flags


def one_blas_thread(environment: MutableMapping[str, str]) -> None:
    """One thread for numpy's products; call before numpy is imported.

    They are small here, and beside other work its threads wait for one another: 26 ms for the judge
    of scenes to look at a picture, in place of 6.
    """
    environment.setdefault('OPENBLAS_NUM_THREADS', '1')


def on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will compute on CPUs, told without starting it."""
    asked = environment.get('JAX_PLATFORMS', '')
    if asked:
        return asked == 'cpu'
    return not entry_points(group='jax_plugins') and importlib.util.find_spec('libtpu') is None


def tunables(environment: Mapping[str, str]) -> str:
    """GLIBC_TUNABLES with what they lack, '' where the C library is another or they lack nothing.

    XLA allocates its temporary buffers anew at each step, and blocks of their size are by default
    given back to the kernel, which clears every page of the next ones.
    """
    if platform.libc_ver()[0] != 'glibc':
        return ''
    wanted = dict(_KEEP) if on_cpu(environment) else {}
    if _HUGE_PAGES.exists() and '[madvise]' in _HUGE_PAGES.read_text():
        wanted['hugetlb'] = 1  # only those who ask are given huge pages
    given = environment.get('GLIBC_TUNABLES', '')
    full = {f'glibc.malloc.{name}': value for name, value in wanted.items()}
    lacking = [f'{name}={value}' for name, value in full.items() if name not in given]
    return ':'.join(filter(None, [given, *lacking])) if lacking else ''


def prepare() -> None:
    """Sets up the environment; starts this command again if it must be there from the beginning.

    A step of configs/scenes.py on one core: 480 ms of processor time as it comes, with huge pages
    330 to 380, with memory kept as well 300 to 330 (68,759 page faults, 286, none).
    """
    give_threads(os.environ)
    ascii_only = sys.getfilesystemencoding() == 'ascii'  # no name of a file could have an umlaut
    if ascii_only:
        os.environ['PYTHONUTF8'] = '1'
    too_late = 'OPENBLAS_NUM_THREADS' not in os.environ  # for numpy, which this process has read
    one_blas_thread(os.environ)
    wanted = tunables(os.environ)
    if wanted:
        os.environ['GLIBC_TUNABLES'] = wanted
    if wanted or too_late or ascii_only:
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)
