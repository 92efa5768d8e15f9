"""What determines the bytes of a prepared set, apart from its input; kept with the set."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

NAME = 'prepare.json'
_UNITS = 'units'
MAX_PIXELS = 64_000_000  # of an image, as data.max_pixels by default


@dataclass(frozen=True)
class Settings:
    """As the flags of `rf_jax.prepare`; `tokenizer`: the checksum of a given one, or how one is
    trained.
    """

    source: str
    size: int
    encoding: str
    tokenizer: str
    shard_megabytes: int
    seed: int
    resizer: str = 'pillow'  # as data.resizer; sets begun before there was another have none

    def claim(self, out: str, units: str, other_source: bool) -> None:
        """Writes the settings into the folder of a set, with `units`, the digest of its input.

        Raises UserError as `check`; `other_source`: another --source than before may continue.
        """
        path = f'{out}/{NAME}'
        data = json.dumps(asdict(self) | {_UNITS: units}, indent=1).encode()
        if not storage.exists(path):
            # A local folder is locked; of several processes at a bucket, the first one's are kept.
            write = storage.write if storage.is_local(path) else storage.create
            write(path, data)
        self.check(out, ('source',) if other_source else ())
        if storage.read(path) != data:
            storage.write(path, data)

    def check(self, out: str, but: Sequence[str] = ()) -> str:
        """The digest of the input of the set in a folder, '' if it is not known.

        Raises UserError, which says what differs, if the folder was begun with other settings,
        except for the fields `but`.
        """
        path = f'{out}/{NAME}'
        if not storage.exists(path):
            return ''
        try:
            before = json.loads(storage.read(path))
            before.setdefault('resizer', Settings.resizer)
            differing = [name for name in asdict(self) if before.get(name) != asdict(self)[name]]
        except UserError:  # of a bucket
            raise
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f'{path} cannot be read: {error}; choose another --out') from None
        if differing := [name for name in differing if name not in but]:
            changes = ', '.join(
                f'--{name}: then {before.get(name)}, now {asdict(self)[name]}' for name in differing
            )
            raise UserError(
                f'{out} was begun with other settings ({changes}): use the same, choose '
                'another --out, or remove that folder'
            )
        return before.get(_UNITS, '')
