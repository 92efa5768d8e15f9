"""Every second of a run is counted once, over all its attempts."""

import json

import pytest

from rf_jax.runtime import storage
from rf_jax.runtime.errors import Unavailable
from rf_jax.runtime.goodput import PHASES, Goodput


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def attempt(folder, clock, first, last, *, start=5, compile=10, step=2, save=3, record=None):
    """An attempt with a fake clock; `record`: the last step recorded before it is killed."""
    goodput = Goodput(folder, clock)
    clock.now += start
    goodput.resumed(first)
    for number in range(first + 1, last + 1):
        with goodput.phase('data'):
            clock.now += 0.5
        with goodput.phase('compile' if number == first + 1 else 'steps'):
            clock.now += compile if number == first + 1 else step
        with goodput.phase('checkpoint'):
            clock.now += save
            with goodput.phase('evaluation'):  # nested: not counted twice
                clock.now += 0.25
        if number <= (record or last):
            goodput.save(number)
    return goodput


def test_phases_of_one_attempt(tmp_path):
    clock = Clock()
    goodput = attempt(tmp_path, clock, 0, 5)
    total = goodput.totals()
    assert total == pytest.approx(
        {'start': 5, 'compile': 10, 'steps': 8, 'data': 2.5, 'checkpoint': 16.25,
         'rollout': 0, 'evaluation': 0, 'again': 0, 'idle': 0}
    )  # fmt: skip
    assert sum(total.values()) == pytest.approx(clock.now - 1000)
    assert goodput.share() == pytest.approx(8 / 41.75)
    held = json.loads((tmp_path / 'goodput.json').read_text())
    assert held['goodput'] == pytest.approx(goodput.share(), abs=1e-4)
    assert held['seconds'] == pytest.approx(total)


def test_scoring_before_training_resumes_does_not_count_as_start(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, clock)
    clock.now += 2
    with goodput.phase('evaluation'):
        clock.now += 60
    clock.now += 3
    goodput.resumed(8)
    total = goodput.totals()
    assert (total['start'], total['evaluation']) == (5, 60)
    assert sum(total.values()) == clock.now - 1000


def test_the_cost_of_a_kill_is_attributed_to_its_phases(tmp_path):
    clock = Clock()
    attempt(tmp_path, clock, 0, 12, record=11)  # 10 of 11 recorded steps took 2 s each
    clock.now += 60
    goodput = attempt(tmp_path, clock, 8, 14)  # from the checkpoint of step 8
    total = goodput.totals()
    assert total['again'] == pytest.approx(20 * 3 / 11), 'steps 9 to 11 ran twice'
    assert total['idle'] == pytest.approx(60 + 0.5 + 2 + 3.25), 'and the step without a record'
    assert total['steps'] == pytest.approx(20 + 10 - total['again'])
    assert sum(total.values()) == pytest.approx(clock.now - 1000)
    third = attempt(tmp_path, clock, 10, 11)  # the checkpoints of 14 and 12 were damaged
    total = third.totals()
    assert total['again'] == pytest.approx(20 * 3 / 11 + 10 * 4 / 6)
    assert sum(total.values()) == pytest.approx(clock.now - 1000)
    assert 'goodput' in third.table() and '3 attempt(s)' in third.table()
    assert all(label in third.table() for label in PHASES.values())


@pytest.mark.parametrize(
    'content',
    ['', '{"attempts"', '[]', '{"other": 1}', '{"attempts": 3}', '{"attempts": {"a": 1}}',
     '{"attempts": [3]}', '{"attempts": [{"last_step": 5}]}',
     '{"attempts": [{"began": 1, "seen": 2, "first_step": 0, "last_step": 5, "seconds": []}]}',
     '{"attempts": [{"began": 1, "seen": 2, "first_step": 0, "last_step": null, "seconds": {}}]}',
     '{"attempts": [{"began": 1, "seen": 2, "first_step": 0, "last_step": 5, "seconds": {}}]}'],
)  # fmt: skip
def test_an_unreadable_file_is_replaced(tmp_path, content):
    (tmp_path / 'goodput.json').write_text(content)
    goodput = attempt(tmp_path, Clock(), 0, 2)
    assert '1 attempt(s)' in goodput.table()
    assert len(json.loads((tmp_path / 'goodput.json').read_text())['attempts']) == 1


def test_what_can_be_read_of_a_file_is_kept(tmp_path):
    """Of another version: a phase that it did not have, one that is not known, no record at all."""
    clock = Clock()
    attempt(tmp_path, clock, 0, 5)
    held = json.loads((tmp_path / 'goodput.json').read_text())
    seconds = held['attempts'][0]['seconds']
    seconds['warming'] = seconds.pop('data')
    held['attempts'].insert(0, {'began': 1.0})
    (tmp_path / 'goodput.json').write_text(json.dumps(held))
    goodput = attempt(tmp_path, clock, 5, 6)
    assert '2 attempt(s)' in goodput.table()
    assert sum(goodput.totals().values()) == pytest.approx(clock.now - 1000)


def test_a_full_disk_only_logs_a_warning(tmp_path, caplog):
    (tmp_path / 'file').touch()
    goodput = attempt(tmp_path / 'file' / 'run', Clock(), 0, 2)
    assert goodput.share() > 0
    assert 'cannot be written' in caplog.text


def test_an_outage_leaves_the_records_of_earlier_attempts_alone(tmp_path, monkeypatch, caplog):
    clock = Clock()
    attempt(tmp_path, clock, 0, 3)
    before = (tmp_path / 'goodput.json').read_bytes()

    def fail(_):
        raise Unavailable('unreachable')

    monkeypatch.setattr(storage, 'read', fail)
    attempt(tmp_path, clock, 3, 5)
    assert (tmp_path / 'goodput.json').read_bytes() == before
    assert 'is left as it is' in caplog.text


def test_a_bucket_is_written_once_a_minute_and_at_the_end(tmp_path, monkeypatch):
    written, clock = [], Clock()
    monkeypatch.setattr(storage, 'is_local', lambda _: False)
    monkeypatch.setattr(storage, 'write', lambda path, data: written.append(clock.now))
    spent = Goodput(tmp_path, clock)
    for step in range(100):
        clock.now += 2
        spent.save(step, final=False)
    assert written == [1002, 1062, 1122, 1182]
    spent.save(100)
    assert written[-1] == clock.now
