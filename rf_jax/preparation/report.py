"""The report on a unit of the input, written last: if it exists, the unit's files are complete."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from rf_jax.runtime import storage

SUFFIX = '.json'
Key = TypeVar('Key')
_THREADS = 32  # reading waits for a bucket


@dataclass(frozen=True)
class Report:
    """`samples`, `bytes`: kept of each of `set_file.KINDS`. `left_out`, `examples`: as in
    `set_file.PreparedSet`. `error`: why the unit could not be read to its end, or ''. `ignored`:
    names of fields that could not be used, and of how many samples.
    """

    samples: Mapping[str, int] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    error: str = ''
    ignored: Mapping[str, int] = field(default_factory=dict)

    def write(self, path: str) -> None:
        storage.write(path, json.dumps(asdict(self)).encode())


def read_all(paths: Mapping[Key, str]) -> dict[Key, dict]:
    """What these JSON files hold, without those that a hard stop of the machine has damaged."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(paths, pool.map(_read, paths.values())))
    return {key: each for key, each in found.items() if each is not None}


def _read(path: str) -> dict | None:
    data = storage.read(path)
    try:
        return json.loads(data)
    except ValueError:
        return None
