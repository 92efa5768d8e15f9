"""Paths as people write them: `~` is the home folder, and a URL (gs://bucket) is no folder yet."""

import os
import re
from pathlib import Path

from rf_jax.runtime.errors import UserError

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+.-]+:/')  # one slash: what pathlib leaves of gs://bucket
_PACKAGED = Path(__file__).parents[2]  # holds the folders rf_jax/ and configs/, installed or cloned


def local(path: str | os.PathLike, field: str) -> Path:
    """The path with `~` expanded; `field` is the flag, config field or argument that it comes from.

    Raises UserError, naming the field, as `expanded` does.
    """
    try:
        return expanded(path)
    except ValueError as error:
        raise UserError(f'{field}={os.fspath(path)} {error}') from None


def expanded(path: str | os.PathLike) -> Path:
    """As `local`. Raises ValueError, with what is wrong, for a URL (gs://, s3://, ...), an empty
    path, and the home folder of an unknown user.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError('is empty; expected a path')
    if _URL.match(text):
        raise ValueError(
            'is a URL, and buckets cannot be read or written yet: give a folder of this machine or '
            'of a network file system'
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f'cannot be read: {error}') from None


def config_file(text: str, field: str = '--config') -> str:
    """A config file, with its variant if any (`configs/emoji.py:long`): the file itself where it
    exists, else, of a relative path below configs/, the one that is installed with rf_jax.

    Raises UserError as `local` does.
    """
    local(text, field)
    name, colon, variant = text.partition(':')
    path = Path(name).expanduser()
    if not path.exists() and path.parts[:1] == ('configs',) and (_PACKAGED / path).exists():
        path = _PACKAGED / path
    return f'{path}{colon}{variant}'
