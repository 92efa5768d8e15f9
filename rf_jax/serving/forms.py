"""Requests of OpenAI's API to what the model understands; every field is checked."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rf_jax.data import image_ops, image_urls, messages
from rf_jax.data.messages import ImagePart, Message
from rf_jax.data.records import BadImage
from rf_jax.generation.image_sampling import SCALES
from rf_jax.serving import fields
from rf_jax.serving.errors import ApiError, invalid

MOST_CHOICES = 8  # answers, or images, of one request
_LONGEST_PROMPT = 32_000  # characters
_LONGEST_PIECE = 128  # characters of a token: white space in Qwen's vocabulary
# Fields that change nothing here.
_IGNORED = {'user', 'metadata', 'store', 'service_tier', 'safety_identifier', 'prompt_cache_key'}
# Fields of the API that are not supported: accepted with the value that asks for nothing.
_UNSUPPORTED: dict[str, tuple] = {
    'frequency_penalty': (0,), 'presence_penalty': (0,), 'logit_bias': ({},),
    'logprobs': (False,), 'top_logprobs': (0,), 'tools': ([],), 'tool_choice': ('none', 'auto'),
    'functions': ([],), 'parallel_tool_calls': (True, False), 'audio': (),
    'repetition_penalty': (1,), 'min_p': (0,), 'min_tokens': (0,), 'ignore_eos': (False,),
    'skip_special_tokens': (True,), 'best_of': (1,),
    'response_format': ({'type': 'text'},), 'reasoning_effort': (), 'prediction': (),
}  # fmt: skip
_CHAT = {'messages', 'model', 'max_tokens', 'max_completion_tokens', 'temperature', 'top_p',
         'top_k', 'n', 'seed', 'stop', 'stream', 'stream_options', 'modalities',
         'size', 'partial_images', *SCALES}  # fmt: skip
_IMAGES = {'prompt', 'model', 'n', 'size', 'seed', 'response_format', 'output_format', 'quality',
           'style', 'background', 'stream', 'partial_images', 'partial_tokens',
           *SCALES}  # fmt: skip
# Fields of the image routes, and the values that say what is done.
_ONLY = {
    'response_format': ('b64_json',), 'output_format': ('png',), 'background': ('opaque', 'auto'),
}  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """A request of /v1/chat/completions. `size` (height, width) or None; `most` 0: no limit;
    `guidance`: scales in place of the server's.
    """

    messages: tuple[Message, ...]
    most: int
    temperature: float
    top_p: float
    top_k: int
    count: int
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    images: bool
    size: tuple[int, int] | None
    partial_images: int
    guidance: Mapping[str, float]


@dataclass(frozen=True)
class Images:
    """A request of /v1/images/generations or /v1/images/edits. What is `partial` is shown before an
    image, if it is streamed; `guidance` as in Chat.
    """

    prompt: str
    count: int
    size: tuple[int, int] | None
    seed: int | None
    images: tuple[np.ndarray, ...] = ()
    stream: bool = False
    partial_images: int = 0
    partial_tokens: bool = False
    guidance: Mapping[str, float] = field(default_factory=dict)


def chat(body: Any, model: str, max_pixels: int, capacity: Mapping[str, int]) -> Chat:
    """`capacity`: config.data.capacity of the model. Raises ApiError."""
    body = fields.json_object(body)
    _check_names(body, _CHAT | _IGNORED)
    _check_model(body, model)
    most = [
        fields.integer(body, name, 0, 1, 10**6) for name in ('max_completion_tokens', 'max_tokens')
    ]
    stream, options = fields.boolean(body, 'stream'), body.get('stream_options') or {}
    if not isinstance(options, Mapping) or set(options) - {'include_usage', 'include_obfuscation'}:
        raise invalid('stream_options', 'stream_options must look like {"include_usage": true}')
    return Chat(
        messages=_messages(body.get('messages'), max_pixels, capacity),
        most=most[0] or most[1],
        temperature=fields.number(body, 'temperature', 1.0, 0.0, 2.0),
        top_p=max(fields.number(body, 'top_p', 1.0, 0.0, 1.0), 1e-6),  # 0: the likeliest token
        top_k=max(0, fields.integer(body, 'top_k', 0, -1, 10**6)),
        count=fields.integer(body, 'n', 1, 1, MOST_CHOICES),
        seed=fields.seed(body),
        stops=fields.stops(body.get('stop')),
        stream=stream,
        usage=fields.boolean(options, 'include_usage'),
        images=fields.modalities(body.get('modalities')),
        size=_size(body.get('size')),
        partial_images=fields.integer(body, 'partial_images', 0, 0, 3) * stream,
        guidance=fields.guidance(body),
    )


def image_generation(body: Any, model: str) -> Images:
    """Raises ApiError."""
    body = fields.json_object(body)
    _check_names(body, _IMAGES | _IGNORED | {'moderation', 'output_compression'})
    return _images(body, model, ())


def image_edit(body: Any, files: Sequence[bytes], model: str, max_pixels: int) -> Images:
    """`files`: the encoded images of the form. Raises ApiError."""
    _check_names(body, _IMAGES | _IGNORED | {'input_fidelity'})
    if not files:
        raise invalid('image', 'no image: send at least one as the file `image` of the form')
    return _images(body, model, tuple(_decoded(data, max_pixels, 'image') for data in files))


def _images(body: Mapping, model: str, images: tuple[np.ndarray, ...]) -> Images:
    _check_model(body, model)
    prompt = body.get('prompt')
    if not isinstance(prompt, str) or not prompt.strip():
        raise invalid('prompt', 'prompt must be a string that is not empty')
    if len(prompt) > _LONGEST_PROMPT:
        raise invalid('prompt', f'prompt may have up to {_LONGEST_PROMPT} characters')
    for name, only in _ONLY.items():
        if body.get(name) not in (None, *only):
            raise invalid(name, f'only {name}="{only[0]}" is supported')
    count = fields.integer(body, 'n', 1, 1, MOST_CHOICES)
    stream, tokens = fields.boolean(body, 'stream'), fields.boolean(body, 'partial_tokens')
    shown = stream, fields.integer(body, 'partial_images', 0, 0, 3) * stream, tokens
    how = count, _size(body.get('size')), fields.seed(body)
    return Images(prompt, *how, images, *shown, fields.guidance(body))


def _check_names(body: Mapping, known: set[str]) -> None:
    for name, value in body.items():
        if name in known:
            continue
        if name not in _UNSUPPORTED:
            raise invalid(name, f'unrecognized request argument: {name!r}', 'unknown_parameter')
        if value is not None and value not in _UNSUPPORTED[name]:
            raise invalid(name, f'{name} is not supported', 'unsupported_parameter')


def _check_model(body: Mapping, model: str) -> None:
    given = body.get('model', model)
    if not isinstance(given, str):
        raise invalid('model', f'model must be a string, not {fields.kind(given)}')
    if given != model:
        message = f'the model {given!r} does not exist; this server has {model!r}'
        raise ApiError(404, message, 'model', 'model_not_found')


def _messages(given: Any, max_pixels: int, capacity: Mapping[str, int]) -> tuple[Message, ...]:
    if not isinstance(given, list) or not given:
        raise invalid('messages', 'messages must be a list that is not empty')
    try:
        found = messages.parse([_as_parts(*each) for each in enumerate(given)])
    except ValueError as error:
        raise invalid('messages', str(error)) from None
    if found[-1].role != 'user':
        raise invalid('messages', f'the last message is of the {found[-1].role}, expected the user')
    _check_length(found, capacity)
    return tuple(_with_pixels(number, each, max_pixels) for number, each in enumerate(found))


def _as_parts(number: int, message: Any) -> Any:
    """A message of the assistant as this server sends it, its images beside its text, as parts.
    Raises ApiError for what a message may have in OpenAI's API and would be lost here.
    """
    if not isinstance(message, Mapping):
        return message
    where = f'messages[{number}]'
    for name in ('tool_calls', 'function_call'):
        if message.get(name):
            raise invalid(where, f'{where}.{name}: tools are not supported')
    assistant, images = message.get('role') == 'assistant', message.get('images') or []
    if images and not (assistant and isinstance(images, list)):
        raise invalid(
            where,
            f'{where}.images: only a message of the assistant has images beside its content, as a '
            'list; those of others are parts of the content',
        )
    if not assistant:
        return message
    text = message.get('content') or ''
    parts = [{'type': 'text', 'text': text}] if isinstance(text, str) else text
    return {**message, 'content': [*parts, *images]} if isinstance(parts, list) else message


def _check_length(found: Sequence[Message], capacity: Mapping[str, int]) -> None:
    """Raises ApiError before images are decoded and text is split into tokens."""
    needed = {
        'vision_images': sum(len(each.images) for each in found),
        'text': sum(1 + len(each.text) // _LONGEST_PIECE for each in found),
    }
    for name, least in needed.items():
        if least > capacity[name]:
            raise invalid(
                'messages',
                f'the conversation needs at least {least} of data.capacity.{name}={capacity[name]}',
                'context_length_exceeded',
            )


def _with_pixels(number: int, message: Message, max_pixels: int) -> Message:
    where = f'messages[{number}]'
    parts = (
        ImagePart(_decoded(_bytes_of(part.image, where), max_pixels, where))
        if isinstance(part, ImagePart)
        else part
        for part in message.parts
    )
    return Message(message.role, tuple(parts))


def _bytes_of(url: Any, where: str) -> bytes:
    if not isinstance(url, str):
        raise invalid(where, f'the URL of an image is {fields.kind(url)}, expected a string')
    try:
        found = image_urls.bytes_of(url)
    except ValueError as error:
        raise invalid(where, str(error)) from None
    if found is None:
        said = 'only data URLs, data:image/png;base64,..., are read; this server fetches nothing'
        raise invalid(where, f'image URL {fields.short(url)}: {said}')
    return found


def _decoded(data: bytes, max_pixels: int, where: str) -> np.ndarray:
    try:
        return image_ops.read_rgb(data, max_pixels)
    except BadImage as error:
        raise invalid(where, f'an image cannot be read: {error}') from None


def _size(given: Any) -> tuple[int, int] | None:
    """(height, width) of a size WIDTHxHEIGHT."""
    if given in (None, 'auto'):
        return None
    found = re.fullmatch(r'(\d{1,5})x(\d{1,5})', given) if isinstance(given, str) else None
    if not found:
        raise invalid('size', f'size={fields.short(given)} must look like "64x64", width x height')
    return int(found[2]), int(found[1])
