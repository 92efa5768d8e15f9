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
    regexes of tensors for which our model has no place. `describe`: the content of config.json for
    a config of ours and the size of its vocabulary; None: the family is not exported.
    `describe_images`: the content of preprocessor_config.json, if the family has one. `part`: the
    content of config.json for what our model has of a larger one, and the prefix of its tensors
    there; '' if that is all of it.
    """

    sizes: Callable[[Config], dict[str, int]]
    rows: Callable[[Config, Set[str]], Sequence[Row]]
    fields: Callable[[Config], dict[str, Any]]
    refused: Callable[[Config], list[str]]
    same: Callable[[Config, Set[str]], list[tuple[str, str]]] = lambda c, names: []
    unused: tuple[str, ...] = ()
    describe: Callable[[Any, int], dict[str, Any]] | None = None
    describe_images: Callable[[Any], dict[str, Any]] | None = None
    part: Callable[[Config], tuple[Config, str]] = lambda c: (c, '')


def processor(config, kind: str, **own: Any) -> dict[str, Any]:
    """The content of preprocessor_config.json for an encoder of ours, without its sizes."""
    c = config.model.encoder
    return {
        'image_processor_type': kind,
        'do_resize': True,
        'resample': 2,  # bilinear
        'do_rescale': True,
        'rescale_factor': 1 / 255,
        'do_normalize': True,
        'image_mean': list(c.get('pixel_mean', (0.5,) * 3)),  # older runs have no field
        'image_std': list(c.get('pixel_std', (0.5,) * 3)),
        **own,
    }


def other_than(c: Config, **supported: Any) -> list[str]:
    """Errors for fields of config.json of which our model supports only one value, which is also
    the default of an absent field.
    """
    return [
        f'config.json: {name}={c[name]!r} is not supported, only {value!r}'
        for name, value in supported.items()
        if c.get(name, value) != value
    ]
