"""Which shards a path names: a file, a folder, `{00000..00099}`, `{a,b}`, `*` in the last part."""

import fnmatch
import os
import re
from collections.abc import Iterator

from rf_jax.runtime import storage

_BRACES = re.compile(r'\{([^{}]*)\}')
_RANGE = re.compile(r'(\d+)\.\.(\d+)$')
_GZIP = re.compile(r'\.(tar\.gz|tgz)$')
_WILD = re.compile(r'[*?[]')
_KEPT = ('.index', '.json', '.tmp')  # what `kept` writes beside shards


def shards(path: str, ending: str) -> list[str]:
    """Paths of the shards, in the order of the pattern; a folder and `*` give sorted names.

    `ending`: what the names of a folder's shards match, `*.tar`. Raises ValueError that says what
    is wrong with a pattern; a name without wildcards need not exist.
    """
    local = storage.is_local(path)
    path = os.path.expanduser(path) if local else path
    return [found for each in _expanded(path) for found in _listed(each, ending)]


def _expanded(pattern: str) -> Iterator[str]:
    match = _BRACES.search(pattern)
    if not match:
        yield pattern
        return
    numbers = _RANGE.match(match[1])
    if numbers:
        first, last = numbers.groups()
        width = len(first) if first.startswith('0') else 0
        inner = [f'{n:0{width}}' for n in range(int(first), int(last) + 1)]
    else:
        inner = match[1].split(',')
    if not inner or (len(inner) < 2 and not numbers):
        raise ValueError(f'{match[0]} is neither a range {{000..099}} nor a list {{a,b}}')
    for each in inner:
        yield from _expanded(pattern[: match.start()] + each + pattern[match.end() :])


def _listed(path: str, ending: str) -> list[str]:
    folder, _, name = path.rpartition('/')
    if _WILD.search(folder):
        raise ValueError(f'{path} has a wildcard in its folder; only the last part may have one')
    if _WILD.search(name):
        return [f'{folder}/{each}' for each in _matching(folder, name)]
    local = storage.is_local(path)
    is_shard = not os.path.isdir(path) if local else fnmatch.fnmatchcase(name, ending)
    if is_shard:
        return [path]
    return [f'{path.rstrip("/")}/{each}' for each in _matching(path, ending)]


def _matching(folder: str, pattern: str) -> list[str]:
    names = storage.names(folder)
    found = [
        name for name in names if fnmatch.fnmatchcase(name, pattern) and not name.endswith(_KEPT)
    ]
    for name in names if not found else ():
        if _GZIP.search(name) and fnmatch.fnmatchcase(_GZIP.sub('.tar', name), pattern):
            raise ValueError(
                f'{folder}/{name} is compressed, so it cannot be read at random: unpack such files '
                '(gunzip)'
            )
    return found
