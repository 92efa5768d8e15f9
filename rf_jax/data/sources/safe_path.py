"""Paths given in data files: spelled as any system does, and never outside their folder."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from rf_jax.data.records import BadImage

LINKS = '+links'  # folder+links:/path follows symbolic links that leave the folder


class Outside(BadImage):
    """A path that leaves its folder."""


def inside(root: Path, name: str, follow_links: bool) -> Path:
    """The absolute path of `name` in the folder `root`; `..` is taken lexically.

    If there is no such file, Windows separators and composed or decomposed accents (as on macOS)
    are tried too. Raises Outside.
    """
    paths = [Path(os.path.abspath(root / spelling)) for spelling in _spellings(name)]
    path = next((path for path in paths if os.path.lexists(path)), paths[0])
    real_root = os.path.realpath(root)
    if not path.is_relative_to(os.path.abspath(root)) and not path.is_relative_to(real_root):
        raise Outside('paths must be relative to the folder and stay inside it')
    if follow_links or '\0' in name or Path(os.path.realpath(path)).is_relative_to(real_root):
        return path
    raise Outside(
        f'a symbolic link leads out of the folder (folder{LINKS}:/path in data.sources follows it)'
    )


def _spellings(name: str) -> Iterator[str]:
    for each in dict.fromkeys((name, name.replace('\\', '/'))):
        yield each
        yield unicodedata.normalize('NFC', each)
        yield unicodedata.normalize('NFD', each)
