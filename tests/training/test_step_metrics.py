"""step_metrics.py: what is logged, while reader threads go on counting."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from configs import base
from rf_jax.data import layout
from rf_jax.training.step_metrics import StepMetrics


class Growing(Counter):
    """Gets a new name whenever Python code iterates over it, as from another thread."""

    def items(self):
        for item in super().items():
            yield item
            self[f'new {len(self)}'] += 1


def opened(counts=(), terms=()):
    """(StepMetrics, what it has logged last)."""
    logged = {}
    spent = SimpleNamespace(save=lambda *_, **__: None, share=lambda: 1.0, totals=dict)
    writer = SimpleNamespace(scalars=lambda step, values: logged.update(values))
    batches = SimpleNamespace(rows=[0], counts=counts)
    return StepMetrics(base.get_config(), 300, batches, writer, 0, spent, terms), logged


def batch_of(config):
    """A batch of text."""
    tokens = sum(config.data.capacity[name] for name in layout.STREAMS)
    images = {name: np.zeros((1, 4), int) for name in ('pixel_counts', 'vision_counts')}
    return images | {'segment': np.ones((1, tokens))}


def test_a_count_that_appears_while_counts_are_logged_does_not_end_the_run():
    metrics, logged = opened(Growing(text_truncated=3, undecodable_images=1))
    metrics._log(1, {'skipped': 0, 'parameter_norm': 1.0})
    assert logged['data/text_truncated'] == 3 and logged['data/undecodable_images'] == 1


def test_a_quarter_of_the_time_without_patches_has_no_loss():
    metrics, logged = opened({}, ['flow'])
    metrics.seen = 2
    metrics.sums = {'flow_sum_0': 6.0, 'flow_count_0': 3.0, 'flow_sum_1': 0.0, 'flow_count_1': 0.0}
    metrics._log(2, {'skipped': 0, 'parameter_norm': 1.0})
    assert logged['loss/flow_t0'] == 2 and math.isnan(logged['loss/flow_t1'])


def test_steps_without_tokens_of_a_term_have_no_part_in_its_mean():
    metrics, logged = opened({}, ['text', 'flow'])
    metrics.config.log.every = 3
    batch = batch_of(metrics.config)
    for number, text in ((1, 4.0), (2, 0.0), (3, 2.0)):
        losses = {'loss': text, 'text': text, 'flow': 0.0}
        present = {'steps_with/text': float(text > 0), 'steps_with/flow': 0.0}
        state = {'streak': 0, 'skipped': 0, 'parameter_norm': 1.0}
        metrics.push(number, losses | present | state, batch)
    metrics.flush()
    assert logged['loss/text'] == 3 and math.isnan(logged['loss/flow']) and logged['loss'] == 2


@pytest.mark.parametrize(
    ('skipped', 'used', 'room', 'warns'),
    [(0, 0.0, 16, False), (2, 0.0, 16, True), (2, 0.5, 16, False), (2, 0.0, 0, False)],
)
def test_a_step_without_images_that_should_initialise_the_codebook(
    skipped, used, room, warns, caplog
):
    """Steps that were skipped do not count; rows may have no room for images at all."""
    metrics, _ = opened()
    metrics.config.data.capacity.pixels = room
    metrics.config.model.representation.quantizer.data_init_steps = (0, 5)
    values = {'loss': 1.0, 'codes_used': used, 'streak': 0, 'skipped': skipped}
    metrics.push(8, values | {'parameter_norm': 1.0}, batch_of(metrics.config))
    metrics.flush()
    assert ('has no image to generate' in caplog.text) == warns


def test_a_period_has_the_means_of_its_own_steps_without_those_skipped():
    metrics, logged = opened({}, ['text'])
    metrics.config.log.every = 2
    capacity = metrics.config.data.capacity
    capacity.update(dict.fromkeys(capacity, 0) | {'text': 4})
    counted = []
    metrics.progress = SimpleNamespace(
        done=lambda number, **counts: counted.append(counts), rates=dict, line=lambda *_: ''
    )
    batch = {'segment': np.array([[1, 1, 1, 0]])}
    batch |= {'pixel_counts': np.array([[16, 0]]), 'vision_counts': np.array([[4, 4]])}
    found = []
    for number, loss, streak in ((1, 2.0, 0), (2, 4.0, 0), (3, math.nan, 1), (4, 10.0, 0)):
        values = {'loss': loss, 'text': loss, 'streak': streak, 'skipped': 0, 'parameter_norm': 1.0}
        values['steps_with/text'] = 1.0
        metrics.push(number, values, batch)
        metrics.flush()
        found.append((logged.get('loss'), logged.get('loss/text')))
    assert found == [(None, None), (3, 3), (3, 3), (10, 10)]
    assert logged['fill/text'] == 0.75
    rows = metrics.config.data.batch_size  # this process makes one of them
    assert [(each['samples'], each['tokens']) for each in counted] == [(3 * rows, 3 * rows)] * 4
