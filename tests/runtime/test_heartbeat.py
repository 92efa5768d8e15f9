"""A lost process is named, and all others end: with a store and a clock of our own."""

from types import SimpleNamespace

import numpy as np
import pytest

from rf_jax.runtime import exits, heartbeat
from rf_jax.runtime.heartbeat import BEAT, LINGER, PATIENCE, SILENCE, SLOW, Judge, Watch


class Store:
    """JAX's client of the coordinator, as far as the watch uses it."""

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
    """(watches of three processes, their store, turn(indices): a beat of these)."""
    store, now, left = Store(), [100.0], {}
    monkeypatch.setattr(heartbeat, '_say', lambda message: said.append(message))
    monkeypatch.setattr(heartbeat.time, 'sleep', lambda seconds: now.append(now[-1] + seconds))
    said = []

    def leave(index):
        def act(code):
            left[index] = code

        return act

    watches = [Watch(store, i, 3, f'host{i}', ('', 1), leave(i), lambda: now[-1]) for i in range(3)]

    def turn(indices):
        now.append(now[-1] + BEAT)
        for i in indices:
            if i not in left:
                watches[i].beat()

    return watches, store, turn, left, said, now


def test_a_healthy_run_is_left_alone(processes):
    _, _, turn, left, said, _ = processes
    for _ in range(5 * int(SILENCE / BEAT)):
        turn([0, 1, 2])
    assert not left and not said


def test_a_loss_after_a_checkpoint_counts_as_progress(processes, monkeypatch):
    _, _, turn, left, _, now = processes
    monkeypatch.setattr(exits, '_progress', True)
    turn([0, 1, 2])
    began = now[-1]
    while len(left) < 2 and now[-1] < began + 60:
        turn([0, 1])
    assert left == dict.fromkeys([0, 1], exits.FAULT_AFTER_PROGRESS)


@pytest.mark.parametrize('victim', [1, 2])
def test_a_silent_process_is_named_and_all_others_leave(processes, victim):
    _, _, turn, left, said, now = processes
    turn([0, 1, 2])
    began, others = now[-1], [i for i in range(3) if i != victim]
    while len(left) < 2 and now[-1] < began + 60:
        turn(others)
    assert left == dict.fromkeys(others, 1)
    assert SILENCE < now[-1] - began < SILENCE + LINGER + 3 * BEAT
    assert len(said) == 2
    for told in said:
        assert f'process {victim} of 3 on host{victim} was lost' in told
        assert 'same command' in told


def test_the_lost_one_is_named_not_the_one_that_noticed(processes):
    watches, _, turn, left, said, now = processes
    turn([0, 1, 2])
    watches[1].report(
        'Gloo all-reduce failed: connection closed', sure=False, code=1, trace='Traceback'
    )
    began = now[-1]
    while len(left) < 2 and now[-1] < began + 60:
        turn([0, 1])
    assert now[-1] - began < PATIENCE + LINGER + 3 * BEAT, 'a hint makes it quick'
    assert all('process 2 of 3 on host2 was lost' in told for told in said)
    assert not any('Traceback' in told for told in said)


def test_an_error_of_ones_own_is_told_to_all_with_its_trace(processes):
    watches, _, turn, left, said, _ = processes
    turn([0, 1, 2])
    watches[2].report(
        'ZeroDivisionError: division',
        sure=False,
        code=exits.FAULT_AFTER_PROGRESS,
        trace='Traceback ...',
    )
    for _ in range(20):
        turn([0, 1, 2])
    assert left == dict.fromkeys(range(3), exits.FAULT_AFTER_PROGRESS)
    assert all('process 2 of 3 on host2 failed: ZeroDivisionError' in told for told in said)
    assert sum('Traceback' in told for told in said) == 1


def test_a_mistake_of_the_user_ends_all_at_once(processes):
    watches, _, turn, left, said, _ = processes
    turn([0, 1, 2])
    watches[0].report('stopped', sure=True, code=exits.INTERRUPTED)
    watches[1].report('the disk is full', sure=True, code=exits.MISTAKE)
    watches[2].report('connection closed', sure=False, code=exits.FAULT)
    turn([0, 1, 2])
    turn([1, 2])
    assert left == dict.fromkeys(range(3), exits.MISTAKE), 'nothing hides it'
    assert all('process 1 of 3 on host1 stopped: the disk is full' in told for told in said)


def test_without_its_coordinator_each_leaves_by_itself(processes):
    _, store, turn, left, said, _ = processes
    turn([0, 1, 2])
    store.gone = True
    turn([1, 2])
    assert left == {1: 1, 2: 1}
    assert all('process 0 of 3' in told and 'was lost' in told for told in said)


@pytest.mark.parametrize(
    ('answer', 'seconds'),
    [(ConnectionRefusedError, SLOW), (TimeoutError, SILENCE), (None, np.inf)],
)
def test_a_beat_without_answer_ends_a_process_when_its_coordinator_is_surely_gone(
    processes, monkeypatch, answer, seconds
):
    """A network may be silent for some seconds."""
    watches, store, _, left, _, now = processes

    def connect(*_, **__):
        if answer:
            raise answer()
        return SimpleNamespace(close=lambda: None)

    def look_meanwhile(*_):
        for waited in range(1, int(min(seconds, 60)) + 2):
            now.append(100.0 + waited)
            watches[1].guard()
            assert (1 in left) == (waited > seconds)
        return []

    monkeypatch.setattr(heartbeat.socket, 'create_connection', connect)
    monkeypatch.setattr(store, 'key_value_dir_get', look_meanwhile)
    watches[1].beat()
    assert left == ({1: 1} if answer else {})


def test_nobody_is_missed_after_the_end(processes):
    watches, store, turn, left, _, _ = processes
    turn([0, 1, 2])
    for each in watches:
        each.stop()
    store.gone = True
    turn([0, 1, 2])
    assert not left


def test_a_process_that_never_gave_a_sign_is_missed_too():
    judge = Judge(2, 0.0)
    assert judge.look({0: '1 a'}, {}, SILENCE) is None
    code, told = judge.look({0: '2 a'}, {}, SILENCE + 1)
    assert code == exits.FAULT and 'process 1 of 2 was lost' in told
