"""Paths as users write them: `~` is expanded, URLs (gs://bucket) are not supported yet."""

import os
import re
from pathlib import Path

from rf_jax.runtime.errors import UserError

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # pathlib reduces gs://bucket to one slash
_PACKAGED = Path(__file__).parents[2]  # parent of rf_jax/ and configs/, installed or cloned


def local(path: str | os.PathLike, field: str) -> Path:
    """The path with `~` expanded; `field` names the flag, config field or argument it came from.

    Raises UserError, naming the field, where `expanded` raises ValueError.
    """
    try:
        return expanded(path)
    except ValueError as error:
        raise UserError(f'{field}={os.fspath(path)} {error}') from None


def expanded(path: str | os.PathLike) -> Path:
    """The path with `~` expanded.

    Raises ValueError, with the reason, for a URL (gs://, s3://, ...), an empty path or the home
    folder of an unknown user.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError('is empty; expected a path')
    if _URL.match(text):
        raise ValueError(
            'is a URL, and buckets are not supported yet: give a folder on this machine or on a '
            'network file system'
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f'cannot be read: {error}') from None


def config_file(text: str, field: str = '--config') -> str:
    """Path of a config file, with its variant if any (`configs/emoji.py:long`).

    A relative path below configs/ that does not exist resolves to the config installed with rf_jax.
    Raises UserError as `local` does.
    """
    local(text, field)
    name, colon, variant = text.partition(':')
    path = Path(name).expanduser()
    if not path.exists() and path.parts[:1] == ('configs',) and (_PACKAGED / path).exists():
        path = _PACKAGED / path
    return f'{path}{colon}{variant}'
