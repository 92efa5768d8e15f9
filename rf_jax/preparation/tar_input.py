"""Tar files of WebDataset, as img2dataset writes them."""

from collections import Counter
from collections.abc import Callable, Iterator

from rf_jax.data.shards.sample import Sample
from rf_jax.data.shards.tar_format import Tar
from rf_jax.preparation import unit
from rf_jax.preparation.unit import Unit


class TarInput:
    """A `unit.Input`: `webdataset:/path/{00000..00099}.tar`, a folder, `*.tar`."""

    def units(self, entry: int, argument: str) -> list[Unit]:
        return unit.of_files(entry, 'webdataset', argument, '*.tar')

    def samples(
        self, unit: Unit, ignored: Counter[str]
    ) -> Iterator[tuple[str, Callable[[], Sample]]]:
        del ignored
        for name, read, *_ in Tar(0).scan(unit.path):
            yield name, read
