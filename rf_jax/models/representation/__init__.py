"""What stands between a prompt and its pixels, one file per kind: `forcing` (the paper's), and what
the paper compares it with, `continuous` and `alignment`; `none` has the defaults of all kinds.

`kind.py` is the protocol; `of` finds the kind of a config, including one from outside this package;
docs/adding_a_kind.md adds one. `features.py` holds what kinds share of the encoder's features.
"""

import importlib

from ml_collections import ConfigDict

from rf_jax.models.representation import alignment, continuous, forcing
from rf_jax.models.representation.kind import Kind, NoRepresentation
from rf_jax.runtime.errors import UserError, choose, require

KINDS: dict[str, Kind] = {
    'forcing': forcing.KIND,
    'continuous': continuous.KIND,
    'alignment': alignment.KIND,
    'none': NoRepresentation(),
}
_FIELD = 'model.representation.kind'


def of(config: ConfigDict) -> Kind:
    """The kind of `config.model.representation.kind`: a name of `KINDS`, or with a dot in it a
    module whose `KIND` is one. Raises UserError.
    """
    name = config.model.representation.kind
    outside = '.' in name and not name.startswith('.')
    return _imported(name) if outside else choose(_FIELD, name, KINDS)


def check(config: ConfigDict) -> None:
    """Raises UserError for a config that its kind cannot work with."""
    kind, field = of(config), 'data.representation_tokens'
    require(
        config.data.representation_tokens == kind.tokens,
        f'{_FIELD}={config.model.representation.kind!r} has '
        f'{"" if kind.tokens else "no "}representation tokens: set {field}={kind.tokens}',
    )
    kind.check(config)


def _imported(name: str) -> Kind:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'{_FIELD}={name!r} cannot be imported: {error}') from None
    kind = getattr(module, 'KIND', None)
    require(
        kind is not None,
        f'{_FIELD}={name!r}: the module has no KIND, an object of a subclass of '
        'rf_jax.models.representation.kind.Kind',
    )
    require(
        isinstance(kind, Kind),
        f'{_FIELD}={name!r}: its KIND is of type {type(kind).__name__}, expected an object of a '
        'subclass of rf_jax.models.representation.kind.Kind',
    )
    return kind
