"""Parses the config field `data.sources` into sources."""

import difflib
import hashlib
import os
import re
from collections.abc import Sequence

from rf_jax.data.indexed import ShardImages
from rf_jax.data.records import IndexedSource, Source, is_indexed
from rf_jax.data.sources.arrayrecord import ArrayRecordSource
from rf_jax.data.sources.emoji import EmojiSource
from rf_jax.data.sources.folder import FolderSource
from rf_jax.data.sources.listing import LINKS
from rf_jax.data.sources.prepared import PreparedSource
from rf_jax.data.sources.scenes import ScenesSource
from rf_jax.data.sources.text import TextSource
from rf_jax.data.sources.tfds import TfdsSource
from rf_jax.data.sources.webdataset import WebdatasetSource
from rf_jax.runtime import paths, storage
from rf_jax.runtime.errors import UserError

SOURCES: dict[str, type[Source] | type[IndexedSource]] = {
    'emoji': EmojiSource,
    'scenes': ScenesSource,
    'folder': FolderSource,
    'tfds': TfdsSource,
    'text': TextSource,
    'prepared': PreparedSource,
    'webdataset': WebdatasetSource,
    'arrayrecord': ArrayRecordSource,
}
_WITH_LINKS = ('folder', 'text')  # their constructors take `follow_links`
_KNOWN = (
    'emoji | scenes:rung/size[/option...] | folder:/path | tfds:name[/config][:split] | '
    'text:/path | prepared:/path | webdataset:/path/*.tar | arrayrecord:/path/*.array_record*'
)


def parts(text: str) -> list[str]:
    r"""The entries of data.sources; `\,` is a comma within an entry."""
    found = (part.replace('\\,', ',').strip() for part in re.split(r'(?<!\\),', text))
    return [part for part in found if part]


def kind_and_argument(part: str) -> tuple[str, str]:
    """('folder+links', '/path') of 'folder:/path' with links; both may be empty."""
    kind, _, argument = part.partition(':')
    return kind, argument


def source_class(kind: str) -> type[Source] | None:
    """The class of a kind, None if unknown; `+links` is allowed for those in _WITH_LINKS."""
    name = kind.removesuffix(LINKS)
    return None if kind.endswith(LINKS) and name not in _WITH_LINKS else SOURCES.get(name)


def build(text: str, max_pixels: int) -> list[Source]:
    """The sources of a comma-separated list: emoji | scenes:rung/size[/option...] | folder:/path |
    tfds:name[/config][:split] | text:/path | prepared:/path | webdataset:/path/*.tar |
    arrayrecord:/path/*.array_record*.

    `folder+links` and `text+links` follow symbolic links out of their folder. Images of more than
    `max_pixels` pixels are left out. Raises UserError.
    """
    check(text)
    named = parts(text)
    sources: dict[str, Source] = {}
    for part in dict.fromkeys(named):
        kind, argument = kind_and_argument(part)
        links = {'follow_links': True} if kind.endswith(LINKS) else {}
        sources[part] = source_class(kind)(argument, max_pixels, **links)
    return [sources[part] for part in named]


def check(text: str) -> None:
    """Raises UserError, before anything is read, for an unknown kind of source or a URL."""
    named = parts(text)
    if not named:
        raise UserError(f'data.sources is empty; expected a comma-separated list of {_KNOWN}')
    for before, part in zip(['', *named], named):
        kind, argument = kind_and_argument(part)
        found = source_class(kind)
        if found is None:
            near = difflib.get_close_matches(kind, SOURCES, n=1)
            hint = f' Did you mean {near[0]!r}?' if near else ''
            if before and source_class(kind_and_argument(before)[0]).takes_path:
                hint += r' A comma within a path is written \, (backslash, comma).'
            raise UserError(
                f'data.sources: unknown kind {kind!r} in {part!r}.{hint} Known: {_KNOWN}'
            )
        if found.takes_path and argument:
            _path(found, argument)


def _path(kind: type[Source] | type[IndexedSource], argument: str) -> paths.AnyPath:
    return (paths.anywhere if kind.takes_bucket else paths.local)(argument, 'data.sources')


def with_absolute_paths(text: str) -> str:
    """The same list with absolute paths, which names the same data from any working directory.

    Raises UserError for a URL of anything but a bucket.
    """
    found = []
    for part in parts(text):
        kind, argument = kind_and_argument(part)
        source = source_class(kind)
        if source is not None and source.takes_path and argument:
            path = _path(source, argument)
            # Not Path.absolute, which leaves `..` in it.
            path = os.path.abspath(path) if storage.is_local(path) else path
            part = f'{kind}:{os.fspath(path)}'
        found.append(part.replace(',', '\\,'))
    return ','.join(found)


def caches_metadata(text: str) -> bool:
    """Whether one of these sources caches metadata on disk, for other processes to read."""
    return any(source_class(kind_and_argument(part)[0]).caches_metadata for part in parts(text))


def open_shards(sources: Sequence, tokenizer, data) -> str:
    """Opens the shards of all sources that have some, which may write an index beside them.

    Returns how many samples they have, and a digest of how many each shard has.
    """
    return '; '.join(
        f'{len(shards)} {kind} of {source.name} (digest {shards.digest})'
        for source in filter(is_indexed, sources)
        for kind, shards in source.open(tokenizer, data.cache_megabytes).items()
    )


def with_images(sources: Sequence, tokenizer, data) -> list[Source | ShardImages]:
    """Those of the sources that have images, to be read one by one; `data` as config.data."""
    found = []
    for source in sources:
        if is_indexed(source):
            shards = source.open(tokenizer, data.cache_megabytes).get('captions', ())
            source = ShardImages(source.name, shards, data.max_pixels)
        found += [source] if len(with_image(source)) else []
    return found


def with_image(source: Source | ShardImages) -> Sequence[int]:
    """Indices of the examples that have an image, decodable or not."""
    if isinstance(source, ShardImages) or source.procedural:
        return range(len(source))
    return [i for i in range(len(source)) if source.record(i).height]


def summary(sources: Sequence[Source]) -> str:
    """What the packing plan depends on: for each source, the number of examples, how many were left
    out, and a digest of all records (none for procedural sources, whose name says it all).
    """
    summaries = []
    for source in sources:
        if is_indexed(source):
            summaries.append(source.summary())
            continue
        digest = hashlib.blake2b(digest_size=8)
        for i in range(0 if source.procedural else len(source)):
            digest.update(repr(source.record(i)).encode())
        for i in range(0 if source.procedural else len(source.conversations)):
            each = source.conversations[i]
            digest.update(repr((each.messages, each.sizes)).encode())
        if source.maps and not source.procedural:
            digest.update(repr(source.maps).encode())
        left_out = sum(source.skipped.values())
        talks = f' and {len(source.conversations)} conversations' if source.conversations else ''
        summaries.append(
            f'{len(source)} examples{talks} ({left_out} left out, digest {digest.hexdigest()})'
        )
    return '; '.join(summaries)
