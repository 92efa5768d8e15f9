"""step_metrics.py: what is logged, while reader threads go on counting."""

import math
from collections import Counter
from types import SimpleNamespace

from configs import base
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
