"""One process lost ends all, soon and with one clear line: heartbeats through JAX's coordinator.

JAX itself notices a lost process too, but later, and ends the others with a C++ trace.
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

from rf_jax.runtime import exits

BEAT = 1.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one after which a process counts as lost
PATIENCE = 4.0  # the same, once another process has failed
SLOW = 2.0  # seconds without an answer after which the coordinator is tried by other means
LINGER = 4.0  # seconds that the coordinator stays, so that the others can read why
AGAIN = 'Start all processes again with the same command: the run resumes from its last checkpoint'

_ALIVE, _FAILED, _VERDICT = 'rf_jax/alive', 'rf_jax/failed', 'rf_jax/verdict'
_SURE, _UNSURE = 'sure', 'unsure'


class Judge:
    """Decides, from what it is shown each beat, which process is to blame; in process 0 only."""

    def __init__(self, count: int, now: float):
        # Last sign of life of each process, and when it changed.
        self._seen = dict.fromkeys(range(count), ('', now))
        self._failed_at: float | None = None

    def look(
        self, signs: dict[int, str], failed: dict[int, str], now: float
    ) -> tuple[int, str] | None:
        """(exit code of all, which process ended the run and how); None while all is well.

        Args:
          signs: process -> its last sign of life, new each beat, ending in its host's name.
          failed: process -> 'sure' or 'unsure', its exit code and its own account of what went
            wrong, with spaces between; unsure if another process's loss can have caused it.
          now: seconds of any clock.
        """
        for i, sign in signs.items():
            if self._seen[i][0] != sign:
                self._seen[i] = sign, now
        reports = {i: _report(told) for i, told in sorted(failed.items())}
        # A mistake of the user outweighs an interruption: it would be met again.
        sure = [(code, i, told) for i, (is_sure, code, told) in reports.items() if is_sure]
        if sure:
            code, i, told = min(sure, key=lambda each: (each[0] != exits.MISTAKE, each[1]))
            return code, f'{self._name(i)} stopped: {told}'
        if failed and self._failed_at is None:
            self._failed_at = now
        limit = PATIENCE if failed else SILENCE
        silent = [i for i, (_, at) in self._seen.items() if i not in failed and now - at > limit]
        if silent:
            names = ', '.join(map(self._name, silent))
            lost = f'{names} was lost: no sign of life for {limit:.0f} s (killed?). {AGAIN}'
            return exits.fault(), lost
        if failed and now - self._failed_at > 2 * PATIENCE:
            first = min(failed)
            _, code, told = reports[first]
            return code, f'{self._name(first)} failed: {told}. {AGAIN}'
        return None

    def _name(self, i: int) -> str:
        host = self._seen[i][0].partition(' ')[2]
        return f'process {i} of {len(self._seen)}' + (f' on {host}' if host else '')


def _report(text: str) -> tuple[bool, int, str]:
    """(sure, exit code, account) of what `Watch.report` wrote."""
    kind, code, told = text.split(' ', 2)
    return kind == _SURE, int(code), told


class Watch(threading.Thread):
    """Sends signs of life and ends this process when any other has ended before its time."""

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
          client: JAX's client of the coordinator, a store of keys that all processes share.
          host: name of this machine.
          coordinator: address of process 0.
        """
        super().__init__(name='watch', daemon=True)
        self._client, self._index, self._count, self._host = client, index, count, host
        self._leave, self._clock = leave, clock
        self._coordinator = coordinator
        self._asked: float | None = None  # when the question began that has no answer yet
        self._judge = Judge(count, clock()) if index == 0 else None
        self._stop = threading.Event()
        self._beats = 0
        self._trace = ''  # of this process's own error, shown if it is the one to blame

    def run(self) -> None:
        threading.Thread(target=self._guard, name='guard', daemon=True).start()
        while not self._stop.wait(BEAT):
            self.beat()

    def _guard(self) -> None:
        """The client itself may be stuck when the coordinator is gone."""
        while not self._stop.wait(BEAT):
            self.guard()

    def guard(self) -> None:
        """One look at the beat on its way."""
        asked = self._asked
        waited = 0.0 if asked is None else self._clock() - asked
        error = self._trouble() if waited > SLOW else None
        # Who refuses is gone; a network may be silent for a while.
        if isinstance(error, ConnectionRefusedError) or (error and waited > SILENCE):
            self._end(exits.fault(), self._no_coordinator())

    def _trouble(self) -> OSError | None:
        """What a connection to the coordinator meets."""
        try:
            socket.create_connection(self._coordinator, timeout=SLOW).close()
        except OSError as error:
            return error
        return None

    def _no_coordinator(self) -> str:
        return f'process 0 of {self._count}, which coordinates the others, was lost. {AGAIN}'

    def beat(self) -> None:
        """One sign of life, one look at the others."""
        self._asked = self._clock()
        try:
            verdict = self._exchange()
        except Exception as error:  # the client has many names for a coordinator that is gone
            if self._stop.is_set():
                return
            logging.debug('coordinator: %s', error)
            verdict = exits.fault(), self._no_coordinator()
        self._asked = None
        if verdict and not self._stop.is_set():
            self._end(*verdict)

    def _exchange(self) -> tuple[int, str] | None:
        self._beats += 1
        self._client.key_value_set(
            f'{_ALIVE}/{self._index}', f'{self._beats} {self._host}', allow_overwrite=True
        )
        if self._judge is None:
            found = dict(self._client.key_value_dir_get(_VERDICT))
            for text in found.values():
                code, _, told = text.partition(' ')
                return int(code), told
            return None
        verdict = self._judge.look(self._table(_ALIVE), self._table(_FAILED), self._clock())
        if verdict:
            text = '{} {}'.format(*verdict)
            self._client.key_value_set(f'{_VERDICT}/0', text, allow_overwrite=True)
        return verdict

    def _table(self, folder: str) -> dict[int, str]:
        found = self._client.key_value_dir_get(folder)
        return {int(key.rpartition('/')[2]): value for key, value in found}

    def _end(self, code: int, verdict: str) -> None:
        """Whatever the other threads are stuck in."""
        self._stop.set()  # the guard and the watch say it once
        own = verdict.startswith(f'process {self._index} ')
        lines = self._trace + '\n' if own and self._trace else ''
        with contextlib.suppress(Exception):  # no stdout, or nobody who reads it
            sys.stdout.flush()
        _say(f'{lines}error: {verdict}')
        if self._judge is not None:
            time.sleep(LINGER)  # the store is in this process
        self._leave(code)

    def report(self, reason: str, sure: bool, code: int, trace: str = '') -> None:
        """Tells the others that this process cannot go on; all end with its exit code."""
        self._trace = trace
        told = f'{_SURE if sure else _UNSURE} {code} {reason}'
        try:
            self._client.key_value_set(f'{_FAILED}/{self._index}', told, allow_overwrite=True)
        except Exception as error:  # no coordinator: the next beat says so
            logging.debug('coordinator: %s', error)

    def stop(self) -> None:
        """The run is over, the others may go."""
        self._stop.set()


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # no stderr, or nobody who reads it
        os.write(2, f'\n{message}\n'.encode())  # no lock that a stuck thread might hold
