"""What a command sets up before it does anything else: environment variables for computing on CPUs,
and output that never ends a run, whether it is closed, without a reader, or ASCII only.
"""

import contextlib
import errno
import importlib.util
import io
import os
import platform
import re
import sys
from collections.abc import Mapping, MutableMapping
from importlib.metadata import entry_points
from logging import StreamHandler, getLogger
from pathlib import Path

from absl import logging

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # `| head -1` has exited; the terminal was closed
_HUGE_PAGES = Path('/sys/kernel/mm/transparent_hugepage/enabled')
# glibc malloc: one heap, also for large blocks, which never returns memory to the kernel.
_KEEP_MEMORY = {'arena_max': 1, 'mmap_max': 0, 'trim_threshold': 2**40}
_CPU_DEVICES = re.compile(r'--xla_force_host_platform_device_count=(\d+)')


def set_cpu_threads(environment: MutableMapping[str, str]) -> None:
    """Threads and longer timeouts for virtual CPU devices; call before the first computation.

    XLA runs one thread per device, and in a collective each waits for all others. On a few cores
    shared with other work they starve: the process hangs, or aborts after 40 s.
    """
    flags = environment.get('XLA_FLAGS', '')
    devices = _CPU_DEVICES.search(flags)
    if not devices:
        return
    environment.setdefault('PJRT_NPROC', str(3 * int(devices[1])))
    for name, seconds in (('warn_stuck', 120), ('terminate', 1200)):
        flag = f'--xla_cpu_collective_call_{name}_timeout_seconds'
        if flag not in flags:
            flags += f' {flag}={seconds}'
    environment['XLA_FLAGS'] = flags


def one_blas_thread(environment: MutableMapping[str, str]) -> None:
    """One thread for numpy's matrix products; call before numpy is imported.

    Our products are small, and on shared cores the threads wait for one another: the scene judge
    takes 26 ms for an image instead of 6.
    """
    environment.setdefault('OPENBLAS_NUM_THREADS', '1')


def cores() -> int:
    """CPU cores that this process may use; all of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will run on CPUs, decided without initialising it."""
    platforms = environment.get('JAX_PLATFORMS', '')
    if platforms:
        return platforms == 'cpu'
    return not entry_points(group='jax_plugins') and importlib.util.find_spec('libtpu') is None


def malloc_tunables(environment: Mapping[str, str]) -> str:
    """GLIBC_TUNABLES with our settings added; '' if nothing is missing or the libc is not glibc.

    XLA allocates its temporary buffers at every step. By default glibc returns blocks of their size
    to the kernel, which clears every page of the next ones.
    """
    if platform.libc_ver()[0] != 'glibc':
        return ''
    wanted = dict(_KEEP_MEMORY) if on_cpu(environment) else {}
    if _HUGE_PAGES.exists() and '[madvise]' in _HUGE_PAGES.read_text():
        wanted['hugetlb'] = 1  # with madvise, only programs that ask get huge pages
    given = environment.get('GLIBC_TUNABLES', '')
    full = {f'glibc.malloc.{name}': value for name, value in wanted.items()}
    missing = [f'{name}={value}' for name, value in full.items() if name not in given]
    return ':'.join(filter(None, [given, *missing])) if missing else ''


def prepare() -> None:
    """Sets up the environment; re-executes the command for variables that are read at startup.

    Processor time of a step of configs/scenes.py on one core: 480 ms by default, 330 to 380 ms with
    huge pages, 300 to 330 ms with memory kept as well (68,759, 286 and 0 page faults).
    """
    set_cpu_threads(os.environ)
    ascii_only = sys.getfilesystemencoding() == 'ascii'  # file names could not have umlauts
    if ascii_only:
        os.environ['PYTHONUTF8'] = '1'
    too_late = 'OPENBLAS_NUM_THREADS' not in os.environ  # numpy is already imported here
    one_blas_thread(os.environ)
    wanted = malloc_tunables(os.environ)
    if wanted:
        os.environ['GLIBC_TUNABLES'] = wanted
    if wanted or too_late or ascii_only:
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


class _Pipe(io.FileIO):
    """A file descriptor that is redirected to /dev/null once its reader is gone."""

    def write(self, data) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            open_null(self.fileno())
            return len(data)


def open_null(number: int) -> None:
    """Redirects a file descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    os.set_inheritable(number, True)


def make_output_robust() -> None:
    """Replaces sys.stdout and sys.stderr; call before anything is printed.

    A descriptor that the shell closed (`>&-`) is redirected to /dev/null. Otherwise the next file
    to be opened would get its number, and output would be printed into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            open_null(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)
    for handler in (*getLogger().handlers, logging.get_absl_handler().python_handler):
        if isinstance(handler, StreamHandler) and handler.stream in before:
            handler.setStream(sys.stderr)


def _tolerant(stream: io.TextIOWrapper | None, number: int) -> io.TextIOBase:
    if stream is None:  # was closed
        return open(os.devnull, 'w', encoding='utf-8')
    with contextlib.suppress(OSError):
        stream.flush()
    pipe = _Pipe(number, 'w', closefd=False)
    unbuffered = stream.write_through  # PYTHONUNBUFFERED=1, as in most containers
    return io.TextIOWrapper(
        pipe if unbuffered else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors='backslashreplace',  # an ASCII terminal shows ñ as \xf1
        line_buffering=stream.line_buffering,
        write_through=unbuffered,
    )
