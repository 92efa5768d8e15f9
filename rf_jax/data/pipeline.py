"""From pools of examples to batches: lanes, undecodable images, prefetching.

`Batches.batch(step)` is a pure function of (seed, step). A process makes only the rows that its
devices hold, and plans only their lanes.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import grain
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from rf_jax.data import layout, source_list, workers
from rf_jax.data.byte_cache import ByteCache
from rf_jax.data.compose import Composer
from rf_jax.data.lanes import Lanes
from rf_jax.data.mixture import Example
from rf_jax.data.packing.plan import Plan
from rf_jax.data.pools import Pools
from rf_jax.data.records import BadImage
from rf_jax.data.tokenizer import Tokenizer, parse_tokenizer
from rf_jax.runtime.errors import UserError

_MAX_UNDECODABLE = 100  # consecutive undecodable images that stop the run


class Batches:
    """Everything between the sources and the train step.

    `rows`: which rows of every global batch to make, ascending; default: all.
    Raises UserError at construction for impossible capacities, an empty mixture, rows that are not
    whole lanes, or lanes that `data.workers` does not divide.
    """

    def __init__(
        self,
        config,
        sources: Sequence,
        tokenizer: Tokenizer,
        rows: Sequence[int] | np.ndarray | None = None,
    ):
        self._config, self.data = config, config.data
        self.composer = Composer(config, tokenizer)
        self.sources = list(sources)
        self.rows = np.arange(config.data.batch_size) if rows is None else np.asarray(rows)
        self.counts: Counter = Counter()  # what was truncated or left out; logged as metrics data/*
        self._undecodable = 0  # undecodable images since the last one that could be decoded
        cache = ByteCache(config.data.cache_megabytes)
        self.pools = Pools(config, self.sources, self.composer, cache)
        self._lanes = Lanes(config, self.pools, self.rows, self.counts)
        if config.data.workers:
            workers.shares(config.data, self.rows)

    @property
    def plan(self) -> Plan:
        """The plan of the first lane of this process; of the whole batch if there is one lane."""
        return self._lanes.first

    def spans(self, example: Example, decode: bool = True) -> list[layout.Span]:
        """The spans of an example. Raises BadImage if its image cannot be decoded."""
        counts = self.counts if decode else Counter()
        return self.pools[example.task].spans(example.index, example.epoch, counts, decode)

    def examples(self, step: int) -> list[list[Example]]:
        """The examples of each row of this process in global batch `step`."""
        return self._lanes.rows(step, self.rows)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows `self.rows` of global batch `step`: arrays of `layout.empty`, leading len(rows).

        Raises UserError when too many consecutive images cannot be decoded.
        """
        rows = [self._row(examples) for examples in self.examples(step)]
        return layout.make_batch(rows, dict(self.data.capacity), self.composer.channels)

    def _row(self, examples: Sequence[Example]) -> list[list[layout.Span]]:
        row = []
        for example in examples:
            try:
                row.append(self.spans(example))
                if self.pools[example.task].has_images:
                    self._undecodable = 0
            except BadImage as error:
                self._skip(example, error)
        return row

    def _skip(self, example: Example, error: BadImage) -> None:
        source, number = self.pools[example.task].at(example.index)
        self.counts['undecodable_images'] += 1
        self._undecodable += 1
        if self._undecodable >= _MAX_UNDECODABLE:
            raise UserError(
                f'{self._undecodable} consecutive images cannot be decoded; the last is '
                f'example {number} of {source.name}: {error}. Do data.sources still exist?'
            ) from error
        if self.counts['undecodable_images'] <= 10:
            logging.warning('skipped example %d of %s: %s', number, source.name, error)

    def iterate(self, start_step: int, stop_step: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches of steps start_step .. stop_step - 1, prefetched by grain's reader threads, or by
        `data.workers` processes, which open the sources of the config.
        """
        if self.data.workers:
            alone = ConfigDict(self._config.to_dict())
            alone.data.workers = 0
            opened = partial(_opened, alone, self.composer.tokenizer.model_bytes)
            steps = range(start_step, stop_step)
            return workers.iterate(
                self.data, self.composer.channels, opened, self.rows, steps, self.counts
            )
        dataset = grain.MapDataset.source(_Steps(self, start_step, stop_step))
        options = grain.ReadOptions(
            num_threads=self.data.threads, prefetch_buffer_size=self.data.prefetch
        )
        return iter(dataset.to_iter_dataset(options))


def _opened(config, model_bytes: bytes, rows: np.ndarray) -> Batches:
    """The batches of a config, in another process."""
    sources = source_list.build(config.data.sources, config.data.max_pixels)
    return Batches(config, sources, parse_tokenizer(model_bytes), rows)


class _Steps:
    """Random access by step, the interface of a grain data source."""

    def __init__(self, batches: Batches, start: int, stop: int):
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.batches.batch(self.start + int(index))
