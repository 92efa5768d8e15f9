"""A resumed run leaves one clean record, the progress line is right, and a signal stops a run."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from rf_jax.runtime.metrics import MetricWriter, Progress, StopSignal, peak_memory_gb


def lines(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def events(workdir):
    found = []
    for path in sorted((workdir / 'tensorboard').iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], 'little')
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return found


def test_scalars_of_any_type_are_valid_json(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.scalars(1, {'loss': np.float32(0.5), 'skipped': np.int32(2), 'bad': float('nan')})
    writer.close()
    (line,) = lines(tmp_path)
    assert line.pop('time') > 1e9
    assert line == {'step': 1, 'loss': 0.5, 'skipped': 2, 'bad': None}
    assert [value.tag for value in events(tmp_path)[-1].summary.value] == ['loss', 'skipped']


def test_each_line_is_on_disk_immediately(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.scalars(1, {'loss': 1.0})
    assert [line['step'] for line in lines(tmp_path)] == [1]
    assert any(event.step == 1 and event.summary.value for event in events(tmp_path))
    writer.close()


def test_resuming_drops_later_and_incomplete_lines(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.scalars(step, {'loss': float(step)})
    writer.close()
    with open(tmp_path / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 15, "lo')
    writer = MetricWriter(tmp_path, 20)
    writer.scalars(25, {'loss': 0.0})
    writer.close()
    assert [line['step'] for line in lines(tmp_path)] == [10, 20, 25]
    # TensorBoard drops earlier events with the step of a START mark or a later one.
    marks = [event.step for event in events(tmp_path) if event.HasField('session_log')]
    assert sorted(marks) == [1, 21]


def test_tensorboard_holds_scalars_images_and_texts(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.scalars(3, {'loss/flow': 0.25})
    writer.image(3, 'samples', np.zeros((4, 6, 3), np.uint8))
    writer.text(3, 'captions', 'a cat')
    writer.close()
    values = {v.tag: v for event in events(tmp_path) for v in event.summary.value}
    assert values['loss/flow'].simple_value == 0.25
    assert (values['samples'].image.height, values['samples'].image.width) == (4, 6)
    assert values['captions/text_summary'].tensor.string_val[0] == b'a cat'


def test_full_disk_is_reported_once_and_does_not_stop(tmp_path, caplog):
    writer = MetricWriter(tmp_path, 0)
    writer._files._lines.close()
    with Path('/dev/full').open('ab') as writer._files._lines:
        for step in range(30):
            writer.scalars(step, {'loss': 1.0})
        writer.close()
    assert caplog.text.count('Metrics cannot be written') == 1


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_rates_leave_out_the_compilation():
    clock = Clock()
    progress = Progress(1000, 2000, clock)
    clock.now += 60  # compiling
    progress.done(1001, samples=32)
    for step in range(1002, 1012):
        clock.now += 2
        progress.done(step, samples=32, tokens=1000)
    rates = progress.rates()
    assert rates == {'samples_per_second': 16.0, 'tokens_per_second': 500.0}
    line = progress.line(
        1011,
        {'loss': 4.5678, 'loss/text': 1.25, **rates, 'fill': 0.914, 'skipped': 3, 'other': 9}
        | {'flops_per_second': 12.34e9},
    )
    assert line == (
        'step 1011/2000 | loss 4.568 | text 1.25 | 16 samples/s | 500 tokens/s | 12.3 GFLOP/s | '
        'fill 91% | skipped 3 | elapsed 1:20 | ETA 32:58'
    )
    assert 'MFU 41.2%' in progress.line(1011, {'mfu': 0.412, 'flops_per_second': 1.0})
    assert 'GFLOP' not in progress.line(1011, {'mfu': 0.412, 'flops_per_second': 1.0})


def test_pauses_do_not_count_in_rates():
    clock = Clock()
    progress = Progress(0, 10, clock)
    progress.done(1)
    progress.rates()
    clock.now += 2
    with progress.pause():
        clock.now += 100
    progress.done(2, tokens=10)
    assert progress.rates() == {'tokens_per_second': 5.0}


def test_rates_are_measured_since_the_last_call():
    clock = Clock()
    progress = Progress(0, 10, clock)
    progress.done(1, tokens=5)
    assert progress.rates() == {}
    clock.now += 4
    progress.done(2, tokens=20_000)
    assert progress.rates() == {'tokens_per_second': 5000.0}
    clock.now += 1
    progress.done(3, tokens=20_000)
    assert progress.rates() == {'tokens_per_second': 20_000.0}
    assert '20k tokens/s' in progress.line(3, {'tokens_per_second': 20_000})
    assert 'ETA 0:18' in progress.line(3, {})  # two steps in five seconds, seven to go


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_a_flag_and_restores_the_handlers(number):
    old = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == old


@pytest.fixture
def interruptible():
    """Python's default handler of Ctrl-C, which background jobs of a shell start without."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_the_second_interrupt_acts_immediately(interruptible):
    with pytest.raises(KeyboardInterrupt), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_restored_without_a_signal():
    old = signal.getsignal(signal.SIGTERM)
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != old
    assert signal.getsignal(signal.SIGTERM) == old


def test_peak_memory_is_plausible():
    assert 0.01 < peak_memory_gb() < 10_000
