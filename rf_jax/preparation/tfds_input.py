"""Sets of TensorFlow Datasets, read from ArrayRecord."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rf_jax.data.shards import tfds_sample
from rf_jax.data.shards.sample import Sample
from rf_jax.data.sources import tfds, tfds_features
from rf_jax.data.sources.tfds_features import Features
from rf_jax.preparation import unit
from rf_jax.preparation.unit import Unit


class TfdsInput:
    """A `unit.Input`: `tfds:name[/config][:split]`, split 'train' by default."""

    def units(self, entry: int, argument: str) -> list[Unit]:
        data, _ = _opened(argument)
        info = data.dataset_info
        size = int(info.dataset_size)
        return [
            Unit(entry, 'tfds', argument, info.full_name, size, first, last)
            for first, last in unit.slices(len(data))
        ]

    def samples(
        self, unit: Unit, ignored: Counter[str]
    ) -> Iterator[tuple[str, Callable[[], Sample]]]:
        del ignored
        data, features = _opened(unit.path)
        for number in range(unit.first, unit.last):
            example = data[number]
            for is_talk in features.kinds():
                read = partial(tfds_sample.of, features, example, str(number), is_talk)
                yield f'example {number}', read


@functools.lru_cache(4)
def _opened(spec: str) -> tuple[Sequence[dict], Features]:
    info = tfds.open_set(spec).dataset_info
    features = tfds_features.find(tfds.tfds(), info.features, f'tfds:{spec}')
    return tfds.open_set(spec, decoders=features.decoders), features
