"""Fields of a request, each checked for its type and range."""

import re
from collections.abc import Mapping
from typing import Any

from rf_jax.generation.image_sampling import SCALES
from rf_jax.serving.errors import invalid

_MOST_STOPS, _LONGEST_STOP = 4, 200  # texts, and characters of one
_LARGEST_SCALE = 100.0  # of guidance


def json_object(body: Any) -> Mapping:
    """The body. Raises ApiError, as all of these do."""
    if not isinstance(body, Mapping):
        raise invalid(None, f'the body must be a JSON object, not {kind(body)}')
    return body


def number(body: Mapping, name: str, default: float, low: float, high: float) -> float:
    """A field as float, in [low, high]."""
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, str) and re.fullmatch(r'\d{1,9}(\.\d{1,9})?', value):
        value = float(value)  # forms hold text only
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not low <= value <= high:
        raise invalid(name, f'{name}={short(value)} must be a number from {low:g} to {high:g}')
    return float(value)


def integer(body: Mapping, name: str, default: int, low: int, high: int) -> int:
    """A field in [low, high]."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, str) and re.fullmatch(r'-?\d{1,19}', value):  # forms hold text only
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise invalid(name, f'{name}={short(value)} must be an integer from {low} to {high}')
    return value


def seed(body: Mapping) -> int | None:
    """A 64-bit integer, reduced to [0, 2^31)."""
    if body.get('seed') is None:
        return None
    return integer(body, 'seed', 0, -(2**63), 2**63 - 1) % 2**31


def boolean(body: Mapping, name: str) -> bool:
    """A field; False without it."""
    value = body.get(name)
    value = value == 'true' if value in ('true', 'false') else value  # forms hold text only
    if value is not None and not isinstance(value, bool):
        raise invalid(name, f'{name}={short(value)} must be true or false')
    return bool(value)


def stops(given: Any) -> tuple[str, ...]:
    """Texts that end an answer."""
    texts = [] if given is None else [given] if isinstance(given, str) else given
    valid = isinstance(texts, list) and all(
        isinstance(each, str) and 0 < len(each) <= _LONGEST_STOP for each in texts
    )
    if not valid or len(texts) > _MOST_STOPS:
        raise invalid(
            'stop',
            f'stop must be a string or a list of up to {_MOST_STOPS} strings, of up to '
            f'{_LONGEST_STOP} characters',
        )
    return tuple(texts)


def guidance(body: Mapping) -> dict[str, float]:
    """The scales of `config.sampling` that a request gives."""
    given = [name for name in SCALES if body.get(name) is not None]
    return {name: number(body, name, 1.0, 0.0, _LARGEST_SCALE) for name in given}


def modalities(given: Any) -> bool:
    """Whether the answer may have images."""
    if given is None:
        return True
    known = isinstance(given, list) and not set(map(str, given)) - {'text', 'image'}
    if not known or 'text' not in given:  # there is no answer of images alone
        raise invalid('modalities', 'modalities must be ["text"] or ["text", "image"]')
    return 'image' in given


def kind(value: Any) -> str:
    """What a value of JSON is, for an error."""
    names = {dict: 'an object', list: 'a list', str: 'a string', bool: 'a boolean',
             int: 'a number', float: 'a number', type(None): 'null'}  # fmt: skip
    return names.get(type(value), type(value).__name__)


def short(value: Any) -> str:
    """A value, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'
