"""One value or several, as users give them, to one for each prompt."""

import math
import operator
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rf_jax.runtime.errors import UserError, require


def strings(texts: str | Iterable[str], what: str) -> list[str]:
    """A string or several as a list. Raises UserError."""
    if not isinstance(texts, Iterable):
        raise UserError(f'{what}={texts!r}: expected a string or a list of strings')
    texts = [texts] if isinstance(texts, str) else list(texts)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise UserError(f'{what} contain {wrong[0]!r}: expected a string or a list of strings')
    return texts


def integer(name: str, value, least: int | None = None) -> int:
    """A whole number as int: numpy's would hash to another seed. Raises UserError."""
    wanted = 'an integer' if least is None else f'an integer of at least {least}'
    try:
        found = operator.index(value)
    except TypeError:
        raise UserError(f'{name}={value!r}: expected {wanted}') from None
    require(least is None or found >= least, f'{name}={value!r}: expected {wanted}')
    return found


def number(name: str, value, most: float = math.inf) -> float:
    """A finite number in [0, most]. Raises UserError."""
    wanted = 'a number of at least 0' if most == math.inf else f'a number from 0 to {most:g}'
    real = isinstance(value, int | float | np.number) and math.isfinite(value)
    require(real and 0 <= value <= most, f'{name}={value!r}: expected {wanted}')
    return float(value)


def pair(name: str, value) -> tuple[int, int]:
    """(height, width). Raises UserError."""
    try:
        height, width = map(operator.index, value)
    except (TypeError, ValueError):
        raise UserError(f'{name}={value!r}: expected (height, width) in pixels') from None
    return height, width


def integers(name: str, value, prompts: Sequence[str], shape: tuple[int, ...] = ()) -> list:
    """`value`, of `shape`, for each prompt; or its own values, if it has one per prompt."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.zeros(0)
    whole = np.issubdtype(array.dtype, np.integer)
    if not whole or array.shape not in (shape, (len(prompts), *shape)):
        one = '(height, width) in pixels' if shape else 'an integer'
        raise UserError(
            f'{name}={value!r}: expected {one}, or a list of one for each of {len(prompts)} prompts'
        )
    return np.broadcast_to(array, (len(prompts), *shape)).tolist()


def occurrences(prompts: Sequence[str]) -> list[int]:
    """How many times each prompt occurs before its place in the list."""
    seen, numbers = Counter(), []
    for prompt in prompts:
        numbers.append(seen[prompt])
        seen[prompt] += 1
    return numbers
