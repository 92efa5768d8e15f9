"""One sample of a shard: captions and an image, or a conversation with its images.

A captioned image is `{key}.jpg` (or .png, .webp, ...) with `{key}.json`, an entry as in
captions.jsonl without "file", or `{key}.txt`, its caption, as img2dataset writes them. A
conversation is `{key}.json` with "messages" whose images are numbered, and `{key}.0.jpg`,
`{key}.1.jpg`, ...
"""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rf_jax.data import messages
from rf_jax.data.messages import Message
from rf_jax.data.records import BadImage, EmptyCaption, Record
from rf_jax.data.sources import listing
from rf_jax.runtime import paths

IMAGE_EXTENSIONS = ('jpg', 'jpeg', 'png', 'webp', 'gif', 'bmp', 'tif', 'tiff', 'avif', 'jfif')
_NAMED = 6  # files that a message lists
_NUMBERED = re.compile(rf'(\d+)\.({"|".join(IMAGE_EXTENSIONS)})$')


@dataclass(frozen=True)
class Sample:
    """`key`: its name where it came from. `images`: encoded, in order. `messages`: of a
    conversation, each image a number.
    """

    key: str
    images: tuple[bytes, ...]
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    kind: str = ''
    questions: tuple[tuple[str, str], ...] = ()
    messages: tuple[Message, ...] = ()

    def record(self, height: int, width: int) -> Record:
        """Its record, for an image of this size."""
        return Record(height, width, self.captions, self.tags, self.kind, self.questions)

    def texts(self) -> Iterator[str]:
        """All that is learned or read as text."""
        yield from self.captions
        yield from itertools.chain(*self.questions)
        for message in self.messages:
            yield from (p.text for p in message.parts if isinstance(p, messages.TextPart))


def from_members(key: str, members: Mapping[str, bytes]) -> Sample:
    """The sample of these files, {extension: content}.

    Raises BadImage if there is no image where one must be, and ValueError that says what else is
    wrong: no caption, JSON that cannot be read, ...
    """
    entry = _entry(members)
    key = entry['key'] if isinstance(entry.get('key'), str) else key
    if 'messages' not in entry and 'conversations' not in entry:
        return _captioned(key, entry, members)
    try:
        return _conversation(key, entry, members)
    except (BadImage, ValueError) as error:
        # Perhaps a captioned image whose metadata has a field of that name.
        with contextlib.suppress(BadImage, ValueError):
            return _captioned(key, entry, members)
        raise error


def _captioned(key: str, entry: Mapping, members: Mapping[str, bytes]) -> Sample:
    encoded = [members[name] for name in IMAGE_EXTENSIONS if name in members]
    if not encoded:
        raise BadImage(f'no image among {_shown(members)}')
    text = paths.decode_text(members.get('txt', b''), 'replace')
    if text.strip():
        entry = {**entry, 'caption': text}
    fields = listing.texts(entry)
    if not fields['captions']:
        raise EmptyCaption('empty caption')
    return Sample(key, (encoded[0],), **fields)


def _shown(members: Mapping[str, bytes]) -> str:
    names = sorted(members)
    more = f', ... ({len(names)} files)' if len(names) > _NAMED else ''
    dotted = any('.' in name for name in names)
    hint = '; the name of a sample ends at the first dot of the names of its files' * dotted
    return f'{", ".join(names[:_NAMED])}{more}{hint}'


def to_members(sample: Sample, extension: str) -> dict[str, bytes]:
    """The files of a sample whose images are encoded as `extension`; `from_members` reads them."""
    if sample.messages:
        entry = {'messages': [_message(message) for message in sample.messages]}
        images = {f'{n}.{extension}': image for n, image in enumerate(sample.images)}
    else:
        entry = {'caption': list(sample.captions)}
        entry |= {'tags': list(sample.tags)} if sample.tags else {}
        entry |= {'kind': sample.kind} if sample.kind else {}
        if sample.questions:
            entry['questions'] = [{'question': q, 'answer': a} for q, a in sample.questions]
        images = {extension: sample.images[0]}
    text = json.dumps({**entry, 'key': sample.key}, ensure_ascii=False)
    return {'json': text.encode('utf-8', 'replace'), **images}  # a key may have surrogates


def _entry(members: Mapping[str, bytes]) -> dict:
    if 'json' not in members:
        return {}
    try:
        entry = json.loads(paths.decode_text(members['json']))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'its json cannot be read: {error}') from None
    if not isinstance(entry, dict) and 'txt' in members:
        return {}  # metadata of some kind
    if not isinstance(entry, dict):
        raise ValueError(f'its json is a {type(entry).__name__}, expected {{...}}')
    return {name: value for name, value in entry.items() if value is not None}


def _conversation(key: str, entry: Mapping, members: Mapping[str, bytes]) -> Sample:
    numbered = {int(m[1]): members[m[0]] for m in map(_NUMBERED.match, members) if m}
    alone = [members[name] for name in IMAGE_EXTENSIONS if name in members]
    images = [numbered[n] for n in sorted(numbered)] or alone
    given = entry.get('messages', entry.get('conversations'))
    # Images that have numbers already; else the marks in the text and bare parts take them in turn.
    own = _has_numbers(given)
    found, numbers = messages.renumbered(
        messages.parse(given, None if own else list(range(len(images))))
    )
    if not all(isinstance(n, int) and 0 <= n < len(images) for n in numbers):
        raise BadImage(f'the messages show images {numbers}, but the sample has {len(images)}')
    if not any(message.role == 'assistant' for message in found):
        raise ValueError('no message of the assistant, so there is nothing to learn')
    return Sample(key, tuple(images[n] for n in numbers), messages=found)


def _has_numbers(given) -> bool:
    try:
        contents = [message.get('content') for message in given]
        parts = [part for content in contents if isinstance(content, list) for part in content]
        return any(isinstance(part.get('image'), int) for part in parts)
    except (AttributeError, TypeError):
        return False


def _message(message: Message) -> dict:
    parts = []
    for part in message.parts:
        if isinstance(part, messages.TextPart):
            parts.append({'type': 'text', 'text': part.text})
        else:
            learned = {} if type(part) is messages.ImagePart else {'learned': False}
            parts.append({'type': 'image', 'image': part.image, **learned})
    return {'role': message.role, 'content': parts}
