"""What a process that computes on CPUs needs in its environment before it begins."""

import ctypes
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import entry_points
from pathlib import Path

_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
_TUNABLE = 'glibc.malloc.hugetlb'
# Of mallopt(3). How much may lie free at the end of the heap, how many blocks may be mapped apart
# from it, how many heaps there may be.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
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


def wants_huge_pages(environment: MutableMapping[str, str]) -> bool:
    """True where large allocations get huge pages only if the C library asks, and it does not."""
    return (
        _TUNABLE not in environment.get('GLIBC_TUNABLES', '')
        and platform.libc_ver()[0] == 'glibc'
        and _HUGE_PAGES.exists()
        and '[madvise]' in _HUGE_PAGES.read_text()
    )


def on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will compute on CPUs, told without starting it."""
    asked = environment.get('JAX_PLATFORMS', '')
    if asked:
        return asked == 'cpu'
    return not entry_points(group='jax_plugins') and importlib.util.find_spec('libtpu') is None


def keep_memory() -> None:
    """Lets glibc keep what is freed for the next step; call before JAX starts its threads.

    XLA allocates its temporary buffers anew at each step, and blocks of their size are by default
    given back to the kernel, which clears every page of the next ones.
    """
    if platform.libc_ver()[0] == 'glibc':
        for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            ctypes.CDLL(None).mallopt(parameter, value)


def prepare() -> None:
    """Sets up the environment; starts this command again if it must be there from the beginning.

    A step of configs/scenes.py on one core: 480 ms of processor time as it comes, with huge pages
    330 to 380, with memory kept as well 300 to 330 (68,759 page faults, 286, none).
    """
    give_threads(os.environ)
    if wants_huge_pages(os.environ):
        others = os.environ.get('GLIBC_TUNABLES')
        tunables = [others] if others else []
        os.environ['GLIBC_TUNABLES'] = ':'.join([*tunables, f'{_TUNABLE}=1'])
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)
    if on_cpu(os.environ):
        keep_memory()
