"""step_metrics.py: what is logged, while reader threads go on counting."""

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


def test_a_count_that_appears_while_counts_are_logged_does_not_end_the_run():
    logged = {}
    spent = SimpleNamespace(save=lambda *_, **__: None, share=lambda: 1.0, totals=dict)
    writer = SimpleNamespace(scalars=lambda step, values: logged.update(values))
    batches = SimpleNamespace(rows=[0], counts=Growing(text_truncated=3, undecodable_images=1))
    metrics = StepMetrics(base.get_config(), 300, batches, writer, 0, spent, ())
    metrics._log(1, {'skipped': 0, 'parameter_norm': 1.0})
    assert logged['data/text_truncated'] == 3 and logged['data/undecodable_images'] == 1
