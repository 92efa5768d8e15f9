"""The report on a unit of the input, written last: if it exists, the unit's files are complete."""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from rf_jax.runtime import storage

SUFFIX = '.json'
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


def read_all(paths: Iterable[str]) -> list[dict]:
    """What these JSON files hold."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return [json.loads(data) for data in pool.map(storage.read, paths)]
