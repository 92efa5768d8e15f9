"""A conversation: messages, each a role and its parts, text or images.

The form is that of OpenAI's API and of Hugging Face's chat templates:

    [{"role": "user", "content": [{"type": "image", "image": "a.jpg"},
                                  {"type": "text", "text": "What is this?"}]},
     {"role": "assistant", "content": "A cat."}]

Files of LLaVA and ShareGPT (`conversations` with `from` and `value`, images by `<image>` marks in
the text) are read into the same messages. `"learned": false` in an image part of the assistant
makes it a draft: what follows is learned, the image is not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rf_jax.data import image_urls

ROLES = ('system', 'user', 'assistant')
_OTHER_NAMES = {
    'human': 'user', 'gpt': 'assistant', 'model': 'assistant', 'bot': 'assistant',
    'developer': 'system',
}  # fmt: skip
_MARK = '<image>'
_NAMES = ('image', 'url', 'path')  # of what an image part shows


@dataclass(frozen=True)
class TextPart:
    """Text as it stands, without white space around it."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """`image`: in a source, its number among the images of the example; in a file, its path; in a
    chat, anything that `data.arrays.as_rgb` takes.
    """

    image: Any


@dataclass(frozen=True)
class DraftPart(ImagePart):
    """An image of the assistant that is a condition of what follows, and not learned itself."""


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """`role`: one of ROLES."""

    role: str
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined by spaces."""
        return ' '.join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> list:
        """The `image` of each image part."""
        return [part.image for part in self.parts if isinstance(part, ImagePart)]


def user(*parts) -> Message:
    """A message of the user; strings are text, everything else is an image."""
    return Message('user', _parts_of(parts))


def assistant(*parts) -> Message:
    """A message of the assistant, as `user`."""
    return Message('assistant', _parts_of(parts))


def parse(messages: Sequence, images: Sequence | None = None) -> tuple[Message, ...]:
    """Messages from Python objects: `Message`s, or mappings with `role` and `content`, or `from`
    and `value`.

    `images` fill the `<image>` marks of the text and the image parts that name no image, in order;
    with None, `<image>` is text like any other. Raises ValueError that says what is wrong.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise ValueError(f'messages are a {type(messages).__name__}, expected a list')
    left = None if images is None else list(images)
    found = tuple(_message(each, number, left) for number, each in enumerate(messages, 1))
    if left:
        raise ValueError(
            f'{len(images)} images, but only {len(images) - len(left)} <image> marks or image '
            'parts to fill'
        )
    if not found:
        raise ValueError('there are no messages')
    return found


def entry(fields: Mapping) -> tuple[Message, ...]:
    """The messages of one line of conversations.jsonl, each image a path.

    `fields`: "messages" or "conversations", "images" or "image" for `<image>` marks, "system" for a
    message before the others. Raises ValueError that says what is wrong, also for a conversation
    from which nothing can be learned.
    """
    name = next((key for key in ('messages', 'conversations') if key in fields), None)
    if name is None:
        raise ValueError(f'no "messages" (there is {", ".join(map(str, fields)) or "nothing"})')
    images = fields.get('images', fields.get('image', ()))
    if isinstance(images, str):
        images = [images] if images else []
    if not isinstance(images, Sequence):
        raise ValueError(f'"images" is a {type(images).__name__}, expected a list of paths')
    images = [each.get('path') if isinstance(each, Mapping) else each for each in images]
    found = tuple(_with_files(message) for message in parse(fields[name], images))
    if not any(message.role == 'assistant' for message in found):
        raise ValueError('no message of the assistant, so there is nothing to learn')
    system = fields.get('system')
    if isinstance(system, str) and system.strip() and found[0].role != 'system':
        found = (Message('system', (TextPart(_tidy(system)),)), *found)
    return found


def with_images(message: Message, change: Callable[[Any], Any]) -> Message:
    """The message with `change(image)` in place of each image."""
    return replace(
        message,
        parts=tuple(
            replace(part, image=change(part.image)) if isinstance(part, ImagePart) else part
            for part in message.parts
        ),
    )


def _with_files(message: Message) -> Message:
    def file_of(image: Any) -> str:
        if not isinstance(image, str):
            raise ValueError(f'an image is {type(image).__name__}, expected a path')
        return image_urls.file_of(image)

    return with_images(message, file_of)


def renumbered(parsed: Sequence[Message]) -> tuple[tuple[Message, ...], list]:
    """(the same messages, their images numbered in order from 0; what each image was before)."""
    images = [image for message in parsed for image in message.images]
    numbers = iter(range(len(images)))
    return tuple(with_images(message, lambda _: next(numbers)) for message in parsed), images


def _message(given, number: int, images: list | None) -> Message:
    if isinstance(given, Message):
        return _checked(given, number)
    if not isinstance(given, Mapping):
        raise ValueError(f'message {number} is a {type(given).__name__}, expected an object')
    role = given.get('role', given.get('from'))
    content = given.get('content', given.get('value'))
    role = _OTHER_NAMES.get(role.lower(), role.lower()) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f'message {number} has role {role!r:.80}; known: {", ".join(ROLES)}')
    if images is not None and given.get('weight') == 0:
        raise ValueError(
            f'message {number} has weight 0, but every text of the assistant is learned'
        )
    try:
        parts = tuple(_parts(content, images))
    except ValueError as error:
        raise ValueError(f'message {number}: {error}') from None
    if role == 'system' and any(isinstance(part, ImagePart) for part in parts):
        raise ValueError(f'message {number}: a system message cannot have images')
    if not parts and (role != 'assistant' or images is not None):  # in a chat it may be silent
        raise ValueError(f'message {number} is empty')
    return Message(role, parts)


def _checked(message: Message, number: int) -> Message:
    """A message that was made in Python."""
    if message.role not in ROLES:
        raise ValueError(
            f'message {number} has role {message.role!r:.80}; known: {", ".join(ROLES)}'
        )
    for part in message.parts if isinstance(message.parts, tuple | list) else (message.parts,):
        if not isinstance(part, Part):
            raise ValueError(
                f'message {number}: a part is a {type(part).__name__}, expected a TextPart or an '
                "ImagePart; messages.user('draw a cat', image) makes them"
            )
    return message


def _parts(content, images: list | None) -> Iterator[Part]:
    if isinstance(content, str):
        yield from _marked(content, images)
        return
    if isinstance(content, Mapping) or not isinstance(content, Sequence):
        raise ValueError(
            f'the content is a {type(content).__name__}, expected a string or a list of parts'
        )
    for part in content:
        kind = part.get('type') if isinstance(part, Mapping) else None
        if kind == 'text' and isinstance(part.get('text'), str):
            yield from _marked(part['text'], images)
        elif kind == 'image':
            named = (part[name] for name in _NAMES if part.get(name) is not None)
            image = next(named, None)
            yield _image_kind(part)(_next(images) if image is None else image)
        elif kind == 'image_url' and isinstance(part.get('image_url'), Mapping | str):
            url = part['image_url']
            yield ImagePart(url if isinstance(url, str) else url.get('url'))
        else:
            raise ValueError(
                f'part {part!r:.80}: expected {{"type": "text", "text": ...}}, {{"type": "image", '
                '"image": ...} or {"type": "image_url", "image_url": {"url": ...}}'
            )


def _image_kind(part: Mapping) -> type[ImagePart]:
    learned = part.get('learned', True)
    if not isinstance(learned, bool):
        raise ValueError(f'"learned" of an image is {learned!r}, expected true or false')
    return ImagePart if learned else DraftPart


def _marked(text: str, images: list | None) -> Iterator[Part]:
    """The text around its `<image>` marks, and their images."""
    for number, piece in enumerate([text] if images is None else text.split(_MARK)):
        if number:
            yield ImagePart(_next(images))
        if piece := _tidy(piece):
            yield TextPart(piece)


def _next(images: list | None):
    if not images:
        raise ValueError('more <image> marks or image parts than images')
    return images.pop(0)


def _parts_of(parts) -> tuple[Part, ...]:
    return tuple(TextPart(_tidy(p)) if isinstance(p, str) else ImagePart(p) for p in parts)


def _tidy(text: str) -> str:
    return text.encode('utf-8', 'replace').decode('utf-8').strip()
