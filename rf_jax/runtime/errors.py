"""Errors that are meant for the person at the keyboard."""

import difflib
from collections.abc import Mapping
from typing import Any

from rf_jax.runtime import exits


class UserError(ValueError):
    """Says what was given, what was expected and which field to change; shown without traceback."""

    code = exits.MISTAKE


class Unavailable(UserError):
    """The same command may succeed later: a lock, a server or another process is in the way."""

    code = exits.FAULT


def choose(field: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`; raises UserError with the known names and the nearest one."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise UserError(f'{field}={name!r} is not known{hint} Known: {", ".join(table)}')


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
