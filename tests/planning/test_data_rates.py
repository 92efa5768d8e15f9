"""data_rates.py: the stages of making batches are measured apart and add up."""

import prepared_set
import pytest

from configs import base
from rf_jax.planning import data_rates
from rf_jax.planning.data_rates import Rates, Stage
from rf_jax.runtime.errors import UserError


def config_of(sources, **data):
    config = base.get_config()
    config.data.update(sources=sources, sizes=((32, 1.0),), batch_size=8, max_text_tokens=24)
    config.data.capacity.update(text=60, vision=12, representation=10, pixels=32)
    config.data.capacity.update(vision_images=4, pixel_images=4)
    config.data.update(data)
    return config


def test_each_stage_of_shards_and_of_listed_examples(tmp_path):
    sources = prepared_set.write(tmp_path, prepared_set.tokenizer(), (128, 128), ())
    for listed, stages in (
        (sources, ['plan', 'read', 'text', 'decode and resize', 'pack']),
        ('emoji', ['plan', 'text', 'decode and resize', 'pack']),
    ):
        batches = data_rates.batches_of(config_of(listed), 1)
        rates = data_rates.measure(batches, 100)
        assert [stage.name for stage in rates.stages] == stages
        assert rates.samples >= 100
        steps = -(-rates.samples // rates.per_step)
        rows = [row for step in range(round(steps)) for row in batches.examples(step)]
        assert rates.per_step == pytest.approx(sum(map(len, rows)) / steps, rel=0.3)
        assert rates.cpu == sum(stage.cpu for stage in rates.stages) > 0


def test_a_host_has_its_share_of_the_rows(tmp_path):
    sources = prepared_set.write(tmp_path, prepared_set.tokenizer(), (512,), ())
    config = config_of(sources, lanes=4)
    whole, part = (data_rates.measure(data_rates.batches_of(config, n), 60) for n in (1, 4))
    assert part.per_step == pytest.approx(whole.per_step / 4, rel=0.3)
    with pytest.raises(UserError, match='--hosts=3 must divide the 4 lanes'):
        data_rates.batches_of(config, 3)


def test_the_report_names_the_bottleneck_and_the_cores_of_a_host():
    rates = Rates([Stage('read', 0.001, 0.002), Stage('decode and resize', 0.004, 0.004)], 99, 660)
    text = '\n'.join(data_rates.lines(rates, 128, 2.0))
    assert 'bottleneck: decode and resize, 80% of the CPU time' in text
    assert '128 hosts: 660 samples and 3.30 s of one core a step a host' in text
    assert 'a step of 2 s: 1.65 cores a host, so data.threads=2 or more' in text
    assert 'waiting' not in text and 'data.workers' not in text
    text = '\n'.join(data_rates.lines(rates, 128, 0.5))
    assert '0.66 s of it hold the interpreter lock' in text
    assert 'data.workers=3 or more, a divisor of the lanes of a host' in text
    slow = Rates([Stage('read', 0.001, 0.009)], 99, 660)
    assert '89% of the time is waiting' in '\n'.join(data_rates.lines(slow, 1, 0.0))
