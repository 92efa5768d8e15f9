"""Errors caused by user input; commands print them as one line."""

import difflib
from collections.abc import Mapping
from typing import Any

from rf_jax.runtime import exit_codes


class UserError(ValueError):
    """States what was given, what was expected and which field to change; no traceback."""

    code = exit_codes.USER_ERROR


class Unavailable(UserError):
    """The same command may succeed later: a lock, server or other process blocks it now."""

    code = exit_codes.FAILURE


def choose(field: str, name: str, table: Mapping[str, Any]) -> Any:
    """`table[name]`; if absent, raises UserError with the known names and the closest match."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    raise UserError(f'{field}={name!r} is not known{hint} Known: {", ".join(table)}')


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)
