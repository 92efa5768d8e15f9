"""The flag --source: which kinds there are, and the units of work that a list of them gives."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple

from rf_jax.data import source_list
from rf_jax.data.shards.sample import Sample
from rf_jax.data.sources.listing import LINKS
from rf_jax.preparation.folder_input import FolderInput
from rf_jax.preparation.parquet_input import ParquetInput
from rf_jax.preparation.tar_input import TarInput
from rf_jax.preparation.tfds_input import TfdsInput
from rf_jax.preparation.unit import Input, Unit
from rf_jax.runtime import errors, paths, storage
from rf_jax.runtime.errors import UserError, require

INPUTS: dict[str, Input] = {
    'webdataset': TarInput(),
    'parquet': ParquetInput(),
    'folder': FolderInput('folder'),
    f'folder{LINKS}': FolderInput(f'folder{LINKS}'),
    'tfds': TfdsInput(),
}
# What their arguments are.
_PATHS: dict[str, Callable] = {
    'webdataset': paths.anywhere,
    'parquet': paths.anywhere,
    'folder': paths.local,
    f'folder{LINKS}': paths.local,
}


def units(source: str) -> list[Unit]:
    """All units of a comma-separated list, in a fixed order. Raises UserError."""
    parts = source_list.parts(source)
    require(parts, f'--source is empty; expected a list of {", ".join(INPUTS)}:/path')
    for before, part in zip(['', *parts], parts):
        _check_kind(part, before)
    found = []
    for number, part in enumerate(parts):
        kind, argument = source_list.kind_and_argument(part)
        try:
            found += INPUTS[kind].units(number, argument)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f'--source={part}: {error}') from None
        except OSError as error:  # no permission, a file in place of a folder, ...
            raise UserError(
                f'--source={part}: {error.filename or argument}: {error.strerror or error}'
            ) from None
    require(found, f'--source={source} has no samples: its files have no entries')
    return found


def _check_kind(part: str, before: str) -> None:
    """Raises UserError if the kind of an entry is not known; `before`: the entry before it."""
    kind, _ = source_list.kind_and_argument(part)
    try:
        errors.choose('--source', kind, INPUTS)
    except UserError as error:
        of_a_path = source_list.kind_and_argument(before)[0] in _PATHS
        hint = r'. A comma within a path is written \, (backslash, comma)' if of_a_path else ''
        raise UserError(f'{error}{hint}') from None


def samples(unit: Unit, ignored: Counter[str]) -> Iterator[tuple[str, Callable[[], Sample]]]:
    """As `Input.samples`; raises UserError where the unit cannot be read to its end."""
    try:
        yield from INPUTS[unit.kind].samples(unit, ignored)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{unit.path} is missing') from None
    except ValueError as error:
        raise UserError(
            f'{unit.path} is {error}; copy it again, or take it out of --source'
        ) from None
    except OSError as error:  # of the disk; pyarrow raises it for damaged data too
        raise UserError(
            f'{unit.path} cannot be read to its end ({error}); copy it again, or take it out of '
            '--source'
        ) from None


def with_absolute_paths(source: str) -> str:
    """The same list with absolute paths of what is on this machine.

    Raises UserError for a URL of anything but a bucket.
    """
    found = []
    for part in source_list.parts(source):
        kind, argument = source_list.kind_and_argument(part)
        if argument and kind in _PATHS:
            _PATHS[kind](argument, '--source')
        if argument and kind in _PATHS and storage.is_local(argument):
            part = f'{kind}:{os.path.abspath(os.path.expanduser(argument))}'
        found.append(part.replace(',', '\\,'))
    return ','.join(found)


def write_units(path: str, units: list[Unit]) -> None:
    storage.write(path, json.dumps([astuple(each) for each in units]).encode())


def digest(units: list[Unit]) -> str:
    """16 hexadecimal digits, the same wherever the same input lies."""
    ids = ' '.join(each.id for each in units)
    return hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()


def read_units(path: str) -> list[Unit]:
    """What `write_units` wrote."""
    return [Unit(*each) for each in json.loads(storage.read(path))]
