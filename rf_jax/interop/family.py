"""What a family of pretrained models brings: its table, and what its config.json fixes."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from rf_jax.interop.table import Row

Config = Mapping[str, Any]  # the content of config.json


@dataclass(frozen=True)
class Family:
    """The functions take the content of config.json, some also the names of the tensors.

    `sizes`: dimensions by the names that the rows use. `rows`: the table. `same`: pairs of tensors
    that must be equal. `fields`: values of fields of our config that the checkpoint fixes.
    `refused`: what the checkpoint asks for and our model does not compute, as text. `unused`:
    regexes of tensors for which our model has no place.
    """

    sizes: Callable[[Config], dict[str, int]]
    rows: Callable[[Config, Set[str]], Sequence[Row]]
    fields: Callable[[Config], dict[str, Any]]
    refused: Callable[[Config], list[str]]
    same: Callable[[Config, Set[str]], list[tuple[str, str]]] = lambda c, names: []
    unused: tuple[str, ...] = ()


def other_than(c: Config, **supported: Any) -> list[str]:
    """What is wrong with fields of config.json for which our model knows one value; it is what an
    absent field means.
    """
    return [
        f'config.json: {name}={c[name]!r} is not supported, only {value!r}'
        for name, value in supported.items()
        if c.get(name, value) != value
    ]
