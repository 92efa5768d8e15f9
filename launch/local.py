#!/usr/bin/env python3
"""Runs N processes of one command on this machine, joined over loopback. Needs only Python.

launch/local.py 4 python -m rf_jax.train --config=configs/debug.py --workdir=runs/four

Exits when all have exited; if one fails, the others are stopped. The most informative exit code is
returned (README.md).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Seconds that the other processes get to exit once one has failed. They need 5 to 30, but if one
# dies before all have connected, they would wait for it for minutes.
GRACE = 45.0
USER_ERROR, INTERRUPTED, AFTER_PROGRESS = 64, 75, 76  # rf_jax/runtime/errors.py


def free_port() -> int:
    """A port of this machine that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Processes:
    """`count` processes of a command, logged to `folder`/<index>.log and, if `show`, to stdout."""

    def __init__(
        self,
        count: int,
        command: Sequence[str],
        folder: str | os.PathLike,
        environment: Mapping[str, str] = os.environ,
        show: bool = True,
        cwd: str | os.PathLike | None = None,
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        self.processes, self._readers = [], []
        for index in range(count):
            joined = {
                'RF_JAX_COORDINATOR': f'127.0.0.1:{port}',
                'RF_JAX_PROCESS': str(index),
                'RF_JAX_PROCESSES': str(count),
            }
            process = subprocess.Popen(
                command,
                env={**environment, **joined},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # we forward Ctrl-C, once to each
            )
            reader = threading.Thread(target=self._read, args=(index, process.stdout, show))
            reader.start()
            self.processes.append(process)
            self._readers.append(reader)

    def _read(self, index: int, pipe, show: bool) -> None:
        # Always read to the end: a process blocks once its pipe is full.
        with (self.folder / f'{index}.log').open('ab', buffering=0) as file:
            for line in pipe:
                with contextlib.suppress(OSError):  # the disk is full
                    file.write(line)
                if show:
                    show = _show(b'[%d] %b' % (index, line))

    def send(self, number: int) -> None:
        """Sends a signal to all running processes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self, grace: float = GRACE) -> list[int]:
        """Waits for all processes and returns their exit codes, as subprocess gives them.

        After the first failure the others get `grace` seconds, then they are killed.
        """
        failed_at = None
        while None in (codes := [process.poll() for process in self.processes]):
            if failed_at is None and any(codes):
                failed_at = time.monotonic()
                index = next(i for i, code in enumerate(codes) if code)
                log(f'process {index} {describe(codes[index])}; the others get {grace:.0f} s')
            if failed_at is not None and time.monotonic() - failed_at > grace:
                log('killing the others')
                self.send(signal.SIGKILL)
                failed_at = float('inf')
            time.sleep(0.05)
        for reader in self._readers:
            reader.join()
        return codes


def _show(line: bytes) -> bool:
    """Writes to stdout; False if it is closed or has no reader any more."""
    try:
        os.write(1, line)
    except OSError:
        return False
    return True


def log(message: str) -> None:
    """Writes a line to stderr, if there is one."""
    with contextlib.suppress(OSError):
        os.write(2, f'local.py: {message}\n'.encode(errors='backslashreplace'))


def worst(codes: Sequence[int]) -> int:
    """The exit code for all, as a shell gives it: a user error, else a failure after progress, else
    an interruption, else the first that is not 0.
    """
    shell = [code if code >= 0 else 128 - code for code in codes]
    known = [code for code in (USER_ERROR, AFTER_PROGRESS, INTERRUPTED) if code in shell]
    return next(iter(known + [code for code in shell if code]), 0)


def describe(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f'was killed by {signal.Signals(-code).name}'
    return f'exited with code {code}'


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal() or int(sys.argv[1]) < 1:
        log('usage: launch/local.py N command ...')
        return 2
    folder = os.environ.get('RF_JAX_LOGS') or tempfile.mkdtemp(prefix='rf_jax_logs_')
    log(f'logs in {folder}')
    started: list[Processes] = []
    early: list[int] = []  # signals received while processes were being started

    def forward(number, _):
        if started:
            started[0].send(number)
        else:
            early.append(number)

    # Before starting them: processes inherit ignored signals, as Ctrl-C is in background jobs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    started.append(Processes(int(sys.argv[1]), sys.argv[2:], folder))
    for number in early:
        started[0].send(number)
    codes = started[0].wait()
    for index, code in enumerate(codes):
        if code:
            log(f'process {index} {describe(code)}')
    return worst(codes)


if __name__ == '__main__':
    sys.exit(main())
