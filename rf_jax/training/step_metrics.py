"""Metrics of train steps: read one step late, checked, averaged over a log period, logged."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from rf_jax.data import layout, pipeline
from rf_jax.models import flops
from rf_jax.runtime import distributed, goodput, hardware, metrics
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, losses


def fill(batch: Mapping[str, np.ndarray], capacity: Mapping[str, int]) -> dict[str, float]:
    """Fraction of the capacity of each stream that holds tokens, and of the whole row."""
    filled = batch['segment'] > 0
    found = {'fill': float(filled.mean())}
    start = 0
    for name in layout.STREAMS:
        if capacity[name]:
            found[f'fill/{name}'] = float(filled[:, start : start + capacity[name]].mean())
        start += capacity[name]
    return found


class StepMetrics:
    """Reads the metrics of a step while the next one runs; checks, averages and logs them."""

    def __init__(
        self,
        config,
        vocabulary: int,
        batches: pipeline.Batches,
        writer: metrics.MetricWriter,
        start: int,
        spent: goodput.Goodput,
        terms: Sequence[str],
    ):
        """`start`: steps already done; `terms`: names of those of the loss."""
        self.config, self.writer, self.spent, self.terms = config, writer, spent, terms
        self.data_counts = batches.counts  # what was truncated or left out so far
        # Rows of a batch per row that this process makes.
        self.scale = config.data.batch_size / len(batches.rows)
        self.progress = metrics.Progress(start, config.steps)
        self.pending: tuple | None = None
        self.sums: dict[str, float] = {}
        self.seen = 0
        self.waited = 0.0
        self.stop = False  # whether any process asked to stop, as of the last step read
        self.flops = flops.train_step(config, vocabulary, flops.visible_pairs(config))
        peak = hardware.peak_flops(jax.devices()[0])
        self.peak = peak and peak * jax.device_count()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Wraps the wait for a batch."""
        since = time.monotonic()
        with self.spent.phase('data'):
            yield
        self.waited += time.monotonic() - since

    def push(self, number: int, values, batch) -> None:
        """Stores the metrics of a step just dispatched and reads those of the previous one."""
        self.flush()
        self.pending = (number, values, batch)

    def flush(self) -> None:
        """Reads the pending metrics; raises UserError if the state is no longer finite."""
        if self.pending is None:
            return
        number, values, batch = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(values).items()}
        self.stop = bool(values.pop('stop', False))
        self._check(number, values)
        samples = int((batch['pixel_counts'] > 0).sum() + (batch['vision_counts'] > 0).sum())
        tokens = int((batch['segment'] > 0).sum())
        # The rows of other processes have about as many.
        samples, tokens = round(samples * self.scale), round(tokens * self.scale)
        self.progress.done(number, samples=samples, tokens=tokens, flops=self.flops)
        if values['streak'] == 0:  # a skipped step has no finite loss to average
            self.seen += 1
            self._warn_of_no_features(number, values)
            for name, value in {**values, **fill(batch, self.config.data.capacity)}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
        if number % self.config.log.every == 0 or number == self.config.steps:
            self._log(number, values)

    def _check(self, number: int, values: Mapping[str, float]) -> None:
        if not np.isfinite(values['parameter_norm']):
            raise checks.not_finite(number)
        if values['streak'] > self.config.optimizer.max_skipped_steps:
            raise UserError(
                f'{values["streak"]:.0f} steps in a row had non-finite gradients (optimizer.'
                'max_skipped_steps); lower optimizer.learning_rate or check the data, then run '
                'again'
            )

    def _warn_of_no_features(self, number: int, values: Mapping[str, float]) -> None:
        """Logs a warning if this step should have initialised the codebook and had no image."""
        steps = self.config.model.representation.quantizer.data_init_steps
        due = self.config.data.capacity.pixels and number - 1 - values['skipped'] in steps
        if due and values.get('codes_used') == 0:
            logging.warning(
                'Step %d has no image to generate: what it should have initialised of the codebook '
                'stays as it was; name a step with images in '
                'model.representation.quantizer.data_init_steps',
                number,
            )

    def _log(self, number: int, values: Mapping[str, float]) -> None:
        seen = max(self.seen, 1)
        sums = self.sums
        mean = {name: value / seen for name, value in sums.items()}
        bands = losses.band_means(sums) if 'flow' in self.terms else {}
        shown = {'loss': mean.get('loss', float('nan'))}
        shown |= {f'loss/{name}': losses.mean_of_steps(name, sums) for name in self.terms}
        rates = self.progress.rates()
        if self.peak and 'flops_per_second' in rates:
            rates['mfu'] = rates['flops_per_second'] / self.peak
        shown |= rates | {name: value for name, value in mean.items() if name.startswith('fill')}
        shown |= {f'loss/{name}': value for name, value in bands.items()}
        shown |= {name: mean[name] for name in ('codes_used', 'gradient_norm') if name in mean}
        shown |= {name: values[name] for name in ('skipped', 'parameter_norm')}
        shown['input_wait_seconds'] = self.waited / seen
        self.spent.save(number, distributed.is_main(), final=False)
        shown['goodput'] = self.spent.share()
        shown |= {f'seconds/{name}': value for name, value in self.spent.totals().items()}
        counts = dict(self.data_counts)  # at once: reader threads add names to it
        shown |= {f'data/{name}': count for name, count in counts.items()}
        self.writer.scalars(number, shown)
        line = {
            name: value
            for name, value in shown.items()
            if not name.startswith('loss/') or not (name[5:] in bands or np.isnan(value))
        }
        logging.info('%s', self.progress.line(number, line))
        self.sums, self.seen, self.waited = {}, 0, 0.0
