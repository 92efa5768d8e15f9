"""Heartbeats through JAX's coordinator: if a process is lost, all others exit with one clear line.

JAX detects a lost process too, but later, and aborts the others with a C++ stack trace.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from absl import logging

from rf_jax.runtime import errors

INTERVAL = 1.0  # seconds between heartbeats
TIMEOUT = 20.0  # seconds without a heartbeat after which a process counts as lost
FAILED_TIMEOUT = 4.0  # the same, once another process has failed
SLOW = 2.0  # seconds without an answer after which the coordinator is probed directly
LINGER = 4.0  # seconds that the coordinator stays up, so that the others can read the reason
RESTART = (
    'Start all processes again with the same command: the run resumes from its last checkpoint'
)

_ALIVE, _FAILED, _VERDICT = 'rf_jax/alive', 'rf_jax/failed', 'rf_jax/verdict'
_SURE, _UNSURE = 'sure', 'unsure'


class FailureDetector:
    """Decides from the heartbeats which process ended the run; runs in process 0 only."""

    def __init__(self, count: int, now: float):
        # Last heartbeat of each process, and when it arrived.
        self._seen = dict.fromkeys(range(count), ('', now))
        self._failed_at: float | None = None

    def check(
        self, beats: dict[int, str], failed: dict[int, str], now: float
    ) -> tuple[int, str] | None:
        """(exit code for all, message that names the process and its failure); None if all run.

        Args:
          beats: process -> its last heartbeat, 'count host'.
          failed: process -> 'sure' or 'unsure', its exit code and its error message, separated by
            spaces; unsure if the loss of another process may have caused the error.
          now: seconds of any clock.
        """
        for i, beat in beats.items():
            if self._seen[i][0] != beat:
                self._seen[i] = beat, now
        reports = {i: _parse_report(text) for i, text in sorted(failed.items())}
        # A user error outweighs an interruption: it would occur again.
        sure = [(code, i, reason) for i, (is_sure, code, reason) in reports.items() if is_sure]
        if sure:
            code, i, reason = min(sure, key=lambda x: (x[0] != errors.USER_ERROR, x[1]))
            return code, f'{self._name(i)} stopped: {reason}'
        if failed and self._failed_at is None:
            self._failed_at = now
        limit = FAILED_TIMEOUT if failed else TIMEOUT
        silent = [i for i, (_, at) in self._seen.items() if i not in failed and now - at > limit]
        if silent:
            names = ', '.join(map(self._name, silent))
            lost = f'{names} was lost: no heartbeat for {limit:.0f} s (killed?). {RESTART}'
            return errors.failure_code(), lost
        if failed and now - self._failed_at > 2 * FAILED_TIMEOUT:
            first = min(failed)
            _, code, reason = reports[first]
            return code, f'{self._name(first)} failed: {reason}. {RESTART}'
        return None

    def _name(self, i: int) -> str:
        host = self._seen[i][0].partition(' ')[2]
        return f'process {i} of {len(self._seen)}' + (f' on {host}' if host else '')


def _parse_report(text: str) -> tuple[bool, int, str]:
    """(sure, exit code, reason) as `Heartbeat.report` wrote them."""
    kind, code, reason = text.split(' ', 2)
    return kind == _SURE, int(code), reason


class Heartbeat(threading.Thread):
    """Sends heartbeats and exits this process when any other one was lost or has failed."""

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        host: str,
        coordinator: tuple[str, int],
        leave: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
          client: JAX's client of the coordinator, a key-value store shared by all processes.
          host: name of this machine.
          coordinator: host and port of process 0.
        """
        super().__init__(name='heartbeat', daemon=True)
        self._client, self._index, self._count, self._host = client, index, count, host
        self._leave, self._clock = leave, clock
        self._coordinator = coordinator
        self._request_at: float | None = None  # start of the request that has no answer yet
        self._detector = FailureDetector(count, clock()) if index == 0 else None
        self._stop = threading.Event()
        self._beats = 0
        self._trace = ''  # of this process's own error, printed if it is the one that ended the run

    def run(self) -> None:
        threading.Thread(target=self._guard, name='guard', daemon=True).start()
        while not self._stop.wait(INTERVAL):
            self.beat()

    def _guard(self) -> None:
        """Runs in a thread of its own: the client may block if the coordinator is gone."""
        while not self._stop.wait(INTERVAL):
            self.check_coordinator()

    def check_coordinator(self) -> None:
        """Exits if the current request gets no answer because the coordinator is gone."""
        since = self._request_at
        waited = 0.0 if since is None else self._clock() - since
        error = self._probe() if waited > SLOW else None
        # A refused connection means it is gone; a network may be silent for a while.
        if isinstance(error, ConnectionRefusedError) or (error and waited > TIMEOUT):
            self._end(errors.failure_code(), self._no_coordinator())

    def _probe(self) -> OSError | None:
        """The error of a connection to the coordinator, None if it accepts."""
        try:
            socket.create_connection(self._coordinator, timeout=SLOW).close()
        except OSError as error:
            return error
        return None

    def _no_coordinator(self) -> str:
        return f'process 0 of {self._count}, which coordinates the others, was lost. {RESTART}'

    def beat(self) -> None:
        """Sends one heartbeat and checks the other processes."""
        self._request_at = self._clock()
        try:
            verdict = self._exchange()
        except Exception as error:  # the client raises many types if the coordinator is gone
            if self._stop.is_set():
                return
            logging.debug('coordinator: %s', error)
            verdict = errors.failure_code(), self._no_coordinator()
        self._request_at = None
        if verdict and not self._stop.is_set():
            self._end(*verdict)

    def _exchange(self) -> tuple[int, str] | None:
        self._beats += 1
        self._client.key_value_set(
            f'{_ALIVE}/{self._index}', f'{self._beats} {self._host}', allow_overwrite=True
        )
        if self._detector is None:
            for _, text in self._client.key_value_dir_get(_VERDICT):
                code, _, reason = text.partition(' ')
                return int(code), reason
            return None
        verdict = self._detector.check(self._table(_ALIVE), self._table(_FAILED), self._clock())
        if verdict:
            text = '{} {}'.format(*verdict)
            self._client.key_value_set(f'{_VERDICT}/0', text, allow_overwrite=True)
        return verdict

    def _table(self, folder: str) -> dict[int, str]:
        entries = self._client.key_value_dir_get(folder)
        return {int(key.rpartition('/')[2]): value for key, value in entries}

    def _end(self, code: int, verdict: str) -> None:
        """Prints the verdict and exits, even if other threads are stuck."""
        self._stop.set()  # printed once, by either thread
        own = verdict.startswith(f'process {self._index} ')
        lines = self._trace + '\n' if own and self._trace else ''
        with contextlib.suppress(Exception):  # no stdout, or no reader
            sys.stdout.flush()
        _say(f'{lines}error: {verdict}')
        if self._detector is not None:
            time.sleep(LINGER)  # this process hosts the key-value store
        self._leave(code)

    def report(self, reason: str, sure: bool, code: int, trace: str = '') -> None:
        """Reports a failure of this process to the others; all exit with its exit code."""
        self._trace = trace
        text = f'{_SURE if sure else _UNSURE} {code} {reason}'
        try:
            self._client.key_value_set(f'{_FAILED}/{self._index}', text, allow_overwrite=True)
        except Exception as error:  # no coordinator: the next heartbeat reports it
            logging.debug('coordinator: %s', error)

    def stop(self) -> None:
        """Stops the heartbeat: the run is over, other processes may exit."""
        self._stop.set()


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # no stderr, or no reader
        os.write(2, f'\n{message}\n'.encode())  # needs no lock that a stuck thread may hold
