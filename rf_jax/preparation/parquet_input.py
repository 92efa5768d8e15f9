"""Parquet files with an image in each row, and a caption or a conversation."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rf_jax.data.records import BadImage, EmptyCaption
from rf_jax.data.shards import sample
from rf_jax.data.shards.ranged import Ranged
from rf_jax.data.shards.sample import IMAGE_EXTENSIONS, Sample
from rf_jax.data.sources import listing
from rf_jax.preparation import unit
from rf_jax.preparation.unit import Unit
from rf_jax.runtime import storage
from rf_jax.runtime.errors import UserError

_IMAGES = ('image', 'images', *IMAGE_EXTENSIONS, 'img', 'picture', 'image_bytes', 'bytes')
_TEXTS = ('caption', 'captions', 'text', 'texts', 'sentence', 'sentences', 'description',
          'prompt', 'alt_text', 'txt', 'title')  # fmt: skip
_WITH_JSON = ('caption', 'captions')  # of these, as BAGEL writes them
_CONVERSATIONS = ('messages', 'conversations')
_KEYS = ('key', '__key__', 'id', 'file_name')
_SPLIT = re.compile(r'(train|test|validation|valid|val|dev)(?=[-_.\d])')  # in names of files
_ROWS = 64  # decoded at a time
_BUFFER = 2**22  # bytes read at a time of each column


class ParquetInput:
    """A `unit.Input`: `parquet:/path/*.parquet`. Needs pyarrow."""

    def units(self, entry: int, argument: str) -> list[Unit]:
        units = unit.of_files(entry, 'parquet', argument, '*.parquet')
        if unit.is_below(units[0].path, argument):
            _refuse_splits(argument.rstrip('/'), [each.name for each in units])
        return units

    def samples(
        self, unit: Unit, ignored: Counter[str]
    ) -> Iterator[tuple[str, Callable[[], Sample]]]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(
                pa.PythonFile(Ranged(unit.path), 'r'), buffer_size=_BUFFER, pre_buffer=False
            ) as file:
                columns = _columns(file.schema_arrow, unit.path)
                number = 0
                for batch in file.iter_batches(_ROWS, columns=columns.names()):
                    for row in batch.to_pylist():
                        read = partial(columns.sample, row, number, unit.path, ignored)
                        yield f'row {number}', read
                        number += 1
        except pa.ArrowException as error:
            reason = ' '.join(str(error).split())[:200]
            raise ValueError(f'damaged, truncated or no Parquet: {reason}') from None


def _refuse_splits(folder: str, names: Sequence[str]) -> None:
    """Raises ValueError if the files of a folder are of several splits, as Hugging Face's are."""
    found = dict.fromkeys(match[1] for match in map(_SPLIT.match, names) if match)
    if len(found) > 1:
        example = 'train' if 'train' in found else next(iter(found))
        raise ValueError(
            f'the files are of several splits, {", ".join(found)}: choose one, as '
            f"'parquet:{folder}/{example}*.parquet', or all by '*.parquet'"
        )


@dataclass(frozen=True)
class _Columns:
    """The columns that are read; '' where there is none."""

    image: str
    text: str
    conversation: str
    key: str
    others: tuple[str, ...]  # of listing.OPTIONAL

    def names(self) -> list[str]:
        own = (self.image, self.text, self.conversation, self.key, *self.others)
        return [name for name in own if name]

    def sample(
        self, row: Mapping[str, Any], number: int, path: str, ignored: Counter[str]
    ) -> Sample:
        """Counts in `ignored` the columns that cannot be used, if the others are a sample.

        Raises BadImage or ValueError.
        """
        key = str(row.get(self.key) or number)
        images = row.get(self.image)
        images = images if isinstance(images, list) else [images]
        encoded = [_bytes(image, path) for image in images if image is not None]
        captions = _captions(self.text, row.get(self.text))
        messages = row.get(self.conversation)
        if messages is not None:
            try:
                return _conversation(key, messages, encoded)
            except (BadImage, ValueError):
                if not (encoded and captions):
                    raise
            ignored.update([self.conversation] if messages else [])
        if not encoded:
            raise BadImage('there is no image')
        if not captions:
            raise EmptyCaption('empty caption')
        entry = {'caption': captions} | {name: row[name] for name in self.others}
        fields = listing.texts(entry)
        ignored.update(listing.ignored(entry, fields))
        return Sample(key, (encoded[0],), **fields)


def _captions(column: str, value: str | Sequence[str | None] | None) -> Sequence[str]:
    """The captions of a value, without nulls and empty ones."""
    if column.lower() in _WITH_JSON and isinstance(value, str):
        listed = _listed_in(value)
        value = value if listed is None else listed
    return listing.texts({'caption': () if value is None else value})['captions']


def _listed_in(text: str) -> list[str | None] | None:
    """The strings of a JSON list or object, ['a', 'b'] or {'caption_0': 'a', 'caption_1': 'b'}."""
    if not text.lstrip().startswith(('[', '{')):
        return None
    try:
        found = _parsed(text)
    except ValueError:
        return None
    found = list(found.values()) if isinstance(found, dict) else found
    return found if all(each is None or isinstance(each, str) for each in found) else None


def _conversation(key: str, messages: str | Sequence, images: Sequence[bytes]) -> Sample:
    messages = _parsed(messages) if isinstance(messages, str) else messages
    try:
        text = json.dumps({'messages': messages}).encode()
    except TypeError as error:  # bytes, dates, decimals, ...
        raise ValueError(f'a value is not text: {error}') from None
    members = {f'{number}.jpg': image for number, image in enumerate(images)}
    return sample.from_members(key, {'json': text, **members})


def _parsed(text: str):
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError('JSON that is nested too deeply') from None


def _columns(schema, path: str) -> _Columns:
    """Raises UserError, which names the columns, if there is no image, or no text."""
    lower = {name.lower(): name for name in reversed(schema.names)}
    images = {name for name in schema.names if _is_image(schema.field(name).type)}
    texts = {name for name in schema.names if _is_text(schema.field(name).type)}

    def first(names, among=None) -> str:
        found = (lower[name] for name in names if name in lower)
        return next((name for name in found if among is None or name in among), '')

    columns = _Columns(
        first(_IMAGES, images) or next((name for name in schema.names if name in images), ''),
        first(_TEXTS, texts),
        first(_CONVERSATIONS),
        first(_KEYS),
        tuple(name for name in listing.OPTIONAL if name in schema.names),
    )
    missing = [] if columns.image or columns.conversation else ['image']
    missing += [] if columns.text or columns.conversation else ['caption, text or messages']
    if missing:
        raise UserError(
            f'{path} has no column of {" and none of ".join(missing)}; its columns are '
            + ', '.join(f'{field.name}: {field.type}' for field in schema)
        )
    return columns


def _is_image(type) -> bool:
    """Bytes, Hugging Face's {bytes, path}, or a list of either."""
    import pyarrow as pa

    if pa.types.is_list(type) or pa.types.is_large_list(type):
        type = type.value_type
    if pa.types.is_struct(type):
        own = [field.type for field in type if field.name == 'bytes']
        return any(_is_binary(each) or pa.types.is_null(each) for each in own)
    return _is_binary(type)


def _is_binary(type) -> bool:
    import pyarrow as pa

    return any(
        check(type)
        for check in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )


def _is_text(type) -> bool:
    """A string, or a list of them."""
    import pyarrow as pa

    if pa.types.is_dictionary(type) or pa.types.is_list(type) or pa.types.is_large_list(type):
        type = type.value_type
    return any(
        check(type)
        for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _bytes(image: bytes | Mapping, path: str) -> bytes:
    """Of an image, which may be a file in the folder of the Parquet file. Raises BadImage."""
    if isinstance(image, bytes):
        return image
    if image.get('bytes') is not None:
        return image['bytes']
    folder, name = path.rpartition('/')[0], str(image.get('path') or '')
    if storage.is_local(path):
        name = str(listing.inside(Path(folder), name, follow_links=False))
    elif '..' in name.split('/') or '://' in name:
        raise BadImage(f'its path {name} leaves the folder')
    else:
        name = f'{folder}/{name}'
    try:
        return storage.read(name)
    except OSError as error:
        raise BadImage(f'it has no bytes, and its file cannot be read: {error}') from None
