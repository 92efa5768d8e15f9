"""`set.json`, which describes a prepared set. Written last: a folder without it is not a set."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

NAME = 'set.json'
KINDS = ('captions', 'conversations')  # a shard has samples of one kind
_FORMAT = 1


@dataclass(frozen=True)
class Shard:
    """`name`: in the folder of the set. `digest`: BLAKE2b of the shard, 16 hexadecimal digits."""

    name: str
    samples: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class PreparedSet:
    """`shards`: of each of KINDS. `tokenizer`: name of its file in the folder, and `checksum` its
    SHA-256. `size`: longest side of an image in pixels, at most. `left_out`: samples that were
    left out, by reason, with the first few of each in `examples`.
    """

    shards: Mapping[str, Sequence[Shard]]
    tokenizer: str
    checksum: str
    size: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def samples(self, kind: str) -> int:
        return sum(shard.samples for shard in self.shards.get(kind, ()))


def write(folder: str, found: PreparedSet) -> None:
    """Writes `set.json`, complete or not at all."""
    text = json.dumps({'format': _FORMAT, **asdict(found)}, indent=1)
    storage.write(f'{folder}/{NAME}', text.encode())


def read(folder: str) -> PreparedSet:
    """The set of a folder. Raises UserError if there is none or it cannot be read."""
    path = f'{folder}/{NAME}'
    if not storage.exists(path):
        raise UserError(
            f'{folder} has no {NAME}: no prepared set, or its preparation has not ended; '
            f'python -m rf_jax.prepare --source=... --out={folder} makes one, or resumes'
        )
    try:
        found = json.loads(storage.read(path))
        if found.pop('format') != _FORMAT:
            raise ValueError('another format')
        shards = {kind: [Shard(**each) for each in found['shards'][kind]] for kind in KINDS}
        return PreparedSet(**{**found, 'shards': shards})
    except UserError:  # of a bucket
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} cannot be read ({type(error).__name__}: {error}); was it made by another '
            'version of rf_jax? Prepare the set again'
        ) from None
