"""A lost process is named and all others exit; with a fake key-value store and clock."""

from types import SimpleNamespace

import numpy as np
import pytest

from rf_jax.runtime import errors, heartbeat
from rf_jax.runtime.heartbeat import (
    FAILED_TIMEOUT,
    INTERVAL,
    LINGER,
    SLOW,
    TIMEOUT,
    FailureDetector,
    Heartbeat,
)


class Store:
    """The part of JAX's coordinator client that heartbeats use."""

    def __init__(self):
        self.held, self.gone = {}, False

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        if self.gone:
            raise RuntimeError('UNAVAILABLE: Socket closed')
        self.held[key] = value

    def key_value_dir_get(self, folder):
        if self.gone:
            raise RuntimeError('UNAVAILABLE: Socket closed')
        return [(key, value) for key, value in self.held.items() if key.startswith(folder + '/')]


@pytest.fixture
def processes(monkeypatch):
    """(heartbeats of three processes, their store, turn(indices): one beat of each of them)."""
    store, now, left = Store(), [100.0], {}
    monkeypatch.setattr(heartbeat, '_say', lambda message: printed.append(message))
    monkeypatch.setattr(heartbeat.time, 'sleep', lambda seconds: now.append(now[-1] + seconds))
    printed = []

    def leave(index):
        def act(code):
            left[index] = code

        return act

    heartbeats = [
        Heartbeat(store, i, 3, f'host{i}', ('', 1), leave(i), lambda: now[-1]) for i in range(3)
    ]

    def turn(indices):
        now.append(now[-1] + INTERVAL)
        for i in indices:
            if i not in left:
                heartbeats[i].beat()

    return heartbeats, store, turn, left, printed, now


def test_a_healthy_run_continues(processes):
    _, _, turn, left, printed, _ = processes
    for _ in range(5 * int(TIMEOUT / INTERVAL)):
        turn([0, 1, 2])
    assert not left and not printed


def test_a_loss_after_a_checkpoint_counts_as_progress(processes, monkeypatch):
    _, _, turn, left, _, now = processes
    monkeypatch.setattr(errors, '_progress', True)
    turn([0, 1, 2])
    began = now[-1]
    while len(left) < 2 and now[-1] < began + 60:
        turn([0, 1])
    assert left == dict.fromkeys([0, 1], errors.FAILURE_AFTER_PROGRESS)


@pytest.mark.parametrize('victim', [1, 2])
def test_a_silent_process_is_named_and_all_others_exit(processes, victim):
    _, _, turn, left, printed, now = processes
    turn([0, 1, 2])
    began, others = now[-1], [i for i in range(3) if i != victim]
    while len(left) < 2 and now[-1] < began + 60:
        turn(others)
    assert left == dict.fromkeys(others, 1)
    assert TIMEOUT < now[-1] - began < TIMEOUT + LINGER + 3 * INTERVAL
    assert len(printed) == 2
    for line in printed:
        assert f'process {victim} of 3 on host{victim} was lost' in line
        assert 'same command' in line


def test_the_lost_process_is_named_not_the_one_that_noticed(processes):
    heartbeats, _, turn, left, printed, now = processes
    turn([0, 1, 2])
    heartbeats[1].report(
        'Gloo all-reduce failed: connection closed', sure=False, code=1, trace='Traceback'
    )
    began = now[-1]
    while len(left) < 2 and now[-1] < began + 60:
        turn([0, 1])
    assert now[-1] - began < FAILED_TIMEOUT + LINGER + 3 * INTERVAL, (
        'a reported failure shortens the timeout'
    )
    assert all('process 2 of 3 on host2 was lost' in line for line in printed)
    assert not any('Traceback' in line for line in printed)


def test_an_error_is_reported_to_all_processes_and_its_traceback_printed_once(processes):
    heartbeats, _, turn, left, printed, _ = processes
    turn([0, 1, 2])
    heartbeats[2].report(
        'ZeroDivisionError: division',
        sure=False,
        code=errors.FAILURE_AFTER_PROGRESS,
        trace='Traceback ...',
    )
    for _ in range(20):
        turn([0, 1, 2])
    assert left == dict.fromkeys(range(3), errors.FAILURE_AFTER_PROGRESS)
    assert all('process 2 of 3 on host2 failed: ZeroDivisionError' in line for line in printed)
    assert sum('Traceback' in line for line in printed) == 1


def test_a_user_error_ends_all_processes_immediately(processes):
    heartbeats, _, turn, left, printed, _ = processes
    turn([0, 1, 2])
    heartbeats[0].report('stopped', sure=True, code=errors.INTERRUPTED)
    heartbeats[1].report('the disk is full', sure=True, code=errors.USER_ERROR)
    heartbeats[2].report('connection closed', sure=False, code=errors.FAILURE)
    turn([0, 1, 2])
    turn([1, 2])
    assert left == dict.fromkeys(range(3), errors.USER_ERROR), 'nothing hides the user error'
    assert all('process 1 of 3 on host1 stopped: the disk is full' in line for line in printed)


def test_without_the_coordinator_every_process_exits(processes):
    _, store, turn, left, printed, _ = processes
    turn([0, 1, 2])
    store.gone = True
    turn([1, 2])
    assert left == {1: 1, 2: 1}
    assert all('process 0 of 3' in line and 'was lost' in line for line in printed)


@pytest.mark.parametrize(
    ('answer', 'seconds'),
    [(ConnectionRefusedError, SLOW), (TimeoutError, TIMEOUT), (None, np.inf)],
)
def test_an_unanswered_heartbeat_ends_the_process_only_if_the_coordinator_is_gone(
    processes, monkeypatch, answer, seconds
):
    """A network may be silent for a few seconds."""
    heartbeats, store, _, left, _, now = processes

    def connect(*_, **__):
        if answer:
            raise answer()
        return SimpleNamespace(close=lambda: None)

    def stall(*_):
        for waited in range(1, int(min(seconds, 60)) + 2):
            now.append(100.0 + waited)
            heartbeats[1].check_coordinator()
            assert (1 in left) == (waited > seconds)
        return []

    monkeypatch.setattr(heartbeat.socket, 'create_connection', connect)
    monkeypatch.setattr(store, 'key_value_dir_get', stall)
    heartbeats[1].beat()
    assert left == ({1: 1} if answer else {})


def test_no_failure_is_detected_after_the_end(processes):
    heartbeats, store, turn, left, _, _ = processes
    turn([0, 1, 2])
    for each in heartbeats:
        each.stop()
    store.gone = True
    turn([0, 1, 2])
    assert not left


def test_a_process_that_never_sent_a_heartbeat_counts_as_lost():
    detector = FailureDetector(2, 0.0)
    assert detector.check({0: '1 a'}, {}, TIMEOUT) is None
    code, line = detector.check({0: '2 a'}, {}, TIMEOUT + 1)
    assert code == errors.FAILURE and 'process 1 of 2 was lost' in line
