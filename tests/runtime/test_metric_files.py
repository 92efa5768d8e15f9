"""Lines and events of a run in a bucket: parts, bounded cost, and nothing lost or doubled."""

import json

import emulators
import pytest
from tensorboardX.proto.event_pb2 import Event

from rf_jax.runtime import checkpoint_folder, metric_files, storage
from rf_jax.runtime.errors import UserError


@pytest.fixture
def workdir(bucket, tmp_path):
    return storage.as_epath(f'{bucket[0]}/{tmp_path.name}/run')


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def write(files, *steps):
    for step in steps:
        files.write(step, Event(step=step), json.dumps({'step': step}).encode() + b'\n')


def steps(workdir):
    return [json.loads(line)['step'] for line in emulators.metric_lines(workdir).splitlines()]


def test_the_newest_part_is_written_again_until_it_is_full(workdir, monkeypatch):
    monkeypatch.setattr(metric_files, 'PART', 250)
    clock = Clock()
    files = metric_files.InBucket(workdir, 0, clock=clock)
    write(files, *range(1, 5))
    assert storage.names(workdir) == [], 'not at every step'
    clock.now += metric_files.EVERY
    write(files, 5)
    assert steps(workdir) == [1, 2, 3, 4, 5]
    write(files, *range(6, 9))
    files.flush()
    write(files, 9, 10)
    files.close()
    assert steps(workdir) == list(range(1, 11))
    assert storage.names(workdir / 'metrics') == ['00000001.jsonl', '00000009.jsonl']
    assert len(storage.names(workdir / 'tensorboard')) == 2


def test_a_killed_run_goes_on_without_gaps_or_later_lines(workdir, monkeypatch):
    monkeypatch.setattr(metric_files, 'PART', 100)
    files = metric_files.InBucket(workdir, 0, clock=Clock())
    for step in range(1, 10):
        write(files, step)
        files.flush()  # at a checkpoint
    write(files, 10)  # and killed
    assert steps(workdir) == list(range(1, 10))
    files = metric_files.InBucket(workdir, 5, clock=Clock())
    assert steps(workdir) == [1, 2, 3, 4, 5]
    write(files, 6, 7)
    files.close()
    assert steps(workdir) == [1, 2, 3, 4, 5, 6, 7]


def test_a_bucket_that_fails_is_tried_again_at_the_next_flush(workdir, bucket, caplog):
    from rf_jax.runtime.metrics import MetricWriter

    writer = MetricWriter(workdir, 0)
    writer.scalars(1, {'loss': 1.0})
    bucket[1].fail('503')
    writer.flush()
    writer.flush()
    assert caplog.text.count('Metrics cannot be written') == 1
    bucket[1].heal()
    writer.scalars(2, {'loss': 2.0})
    writer.close()
    assert steps(workdir) == [1, 2]


def test_a_file_of_another_name_is_left_alone(workdir):
    storage.write(workdir / 'metrics' / 'old', b'notes')
    storage.write(workdir / 'metrics' / '00000009.jsonl', b'{"step": 9}\n')
    files = metric_files.InBucket(workdir, 5, clock=Clock())
    write(files, 6)
    files.close()
    assert storage.names(workdir / 'metrics') == ['00000006.jsonl', 'old']


def test_a_flush_that_fails_after_minutes_is_followed_by_a_pause(workdir, monkeypatch):
    clock, tries = Clock(), []
    files = metric_files.InBucket(workdir, 0, clock=clock)

    def fail(*_):
        tries.append(1)
        clock.now += 10 * metric_files.EVERY
        raise OSError('spoiled')

    write(files, 1)
    clock.now += metric_files.EVERY
    with monkeypatch.context() as patch:
        patch.setattr(storage, 'write', fail)
        with pytest.raises(OSError, match='spoiled'):
            write(files, 2)
        write(files, 3)
    assert len(tries) == 1
    files.close()
    assert steps(workdir) == [1, 2, 3]


def test_a_superseded_process_writes_nothing_more(workdir):
    older = checkpoint_folder.Claim(workdir / 'checkpoints')
    files = metric_files.InBucket(workdir, 0, older.check, Clock())
    write(files, 1)
    checkpoint_folder.Claim(workdir / 'checkpoints')
    with pytest.raises(UserError, match='another process'):
        files.flush()
    assert storage.names(workdir / 'metrics') == []
