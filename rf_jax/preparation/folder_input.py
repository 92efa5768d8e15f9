"""Folders of images with captions.jsonl, conversations.jsonl, or Hugging Face's metadata files."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rf_jax.data import messages
from rf_jax.data.records import BadImage, EmptyCaption
from rf_jax.data.shards.sample import Sample
from rf_jax.data.sources import conversation_file, listing
from rf_jax.preparation import unit
from rf_jax.preparation.unit import Unit
from rf_jax.runtime import paths


class FolderInput:
    """A `unit.Input`: `folder:/path`, read as `data.sources` does; maps are left out."""

    def __init__(self, kind: str):
        self._kind = kind  # 'folder', or with links

    def units(self, entry: int, argument: str) -> list[Unit]:
        root = paths.local(argument, f'--source={self._kind}:')
        found = [
            next((name for name in names if (root / name).is_file()), None)
            for names in (listing.NAMES, conversation_file.NAMES)
        ]
        if not any(found):
            raise ValueError(
                f'there is neither {listing.NAMES[0]} nor {conversation_file.NAMES[0]} in {root}; '
                f'a line of {listing.NAMES[0]} looks like {listing.EXAMPLE}'
            )
        units = []
        for name in filter(None, found):
            size = (root / name).stat().st_size
            for first, last in unit.slices(len(_entries(root / name, size))):
                units.append(Unit(entry, self._kind, str(root), name, size, first, last))
        return units

    def samples(
        self, unit: Unit, ignored: Counter[str]
    ) -> Iterator[tuple[str, Callable[[], Sample]]]:
        root = Path(unit.path)
        read = partial(_image, root, self._kind.endswith(listing.LINKS))
        captioned = partial(_captioned, ignored)
        parse = _conversation if unit.name in conversation_file.NAMES else captioned
        for place, entry in _entries(root / unit.name, unit.bytes)[unit.first : unit.last]:
            yield f'{unit.name}, {place}', partial(parse, entry, place, read)


@functools.lru_cache(2)
def _entries(path: Path, size: int) -> Sequence[tuple[str, dict | str]]:
    """Of a listing of that many bytes; FileNotFoundError if it has gone."""
    del size
    return list(listing.entries(path, path.read_bytes()))


def _captioned(
    ignored: Counter[str], entry: dict | str, place: str, read: Callable[[str], bytes]
) -> Sample:
    del place
    if isinstance(entry, str):
        raise ValueError(entry)
    file, fields = listing.fields(entry)
    if not fields['captions']:
        raise EmptyCaption('empty caption')
    ignored.update(listing.ignored(entry, fields))
    return Sample(file, (read(file),), **fields)


def _conversation(entry: dict | str, place: str, read: Callable[[str], bytes]) -> Sample:
    if isinstance(entry, str):
        raise ValueError(entry)
    found, files = messages.renumbered(messages.entry(entry))
    return Sample(place, tuple(map(read, files)), messages=found)


def _image(root: Path, follow_links: bool, name: str) -> bytes:
    try:
        return listing.inside(root, name, follow_links).read_bytes()
    except (OSError, ValueError) as error:  # a name with a zero byte
        raise BadImage(f'{name}: {error}') from None
