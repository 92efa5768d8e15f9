"""Files of rf_jax.sample, whatever the prompt and however many, and its log while it runs."""

import pytest
from absl import flags
from absl.testing import flagsaver

from rf_jax import sample


@pytest.mark.parametrize(('prompt', 'name'), [
    ('A red, round apple!', '000-a-red-round-apple-seed7-3'),
    ('...', '000-empty-seed7-3'),
    ('a' * 300, f'000-{"a" * 60}-seed7-3'),
    ('\N{CJK UNIFIED IDEOGRAPH-20BB7}' * 80, f'000-{chr(0x20BB7) * 45}-seed7-3'),
], ids=range(4))  # fmt: skip
def test_a_name_is_that_of_a_file(prompt, name, tmp_path):
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(seed=7):
        assert sample._stem(prompt, 0, 3) == name
    (tmp_path / f'{name}.png').write_bytes(b'')


def test_long_work_logs_how_far_it_is(monkeypatch, caplog):
    """Two images a batch: the first batch, which compiles, takes 60 s, the others 8 s each."""
    now = [0.0]
    monkeypatch.setattr(sample.time, 'monotonic', lambda: now[0])

    def images():
        for i in range(8):
            if i % 2 == 0:
                now[0] += 8 if i else 60
            yield i

    caplog.set_level('INFO')
    assert list(sample._with_progress(images(), 8)) == list(range(8))
    assert [record.getMessage() for record in caplog.records] == ['5 of 8 images | ETA 0:12']
