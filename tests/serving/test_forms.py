"""Fields of requests that would be lost are refused, what clients send back is not."""

import pytest

pytest.importorskip('starlette')

from rf_jax.serving import forms
from rf_jax.serving.errors import ApiError

CAPACITY = {'text': 100, 'vision_images': 4}
IMAGE = {'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,'}}
ASKED = {'role': 'user', 'content': 'a'}


def chat(*messages, **more):
    return forms.chat({'messages': [*messages, ASKED]} | more, 'm', 10**6, CAPACITY)


@pytest.mark.parametrize(('message', 'said'), [
    (ASKED | {'images': [IMAGE]}, r'messages\[0\]\.images: only a message of the assistant'),
    ({'role': 'assistant', 'content': 'a', 'images': 'b.png'}, r'messages\[0\]\.images'),
    ({'role': 'model', 'content': 'a', 'images': [IMAGE]}, r'messages\[0\]\.images'),
    ({'role': 'assistant', 'content': None, 'tool_calls': [{'id': '1'}]}, 'tools are not'),
    ({'role': 'assistant', 'content': None, 'function_call': {'name': 'a'}}, 'tools are not'),
])  # fmt: skip
def test_what_a_message_would_lose_is_refused(message, said):
    with pytest.raises(ApiError, match=said) as error:
        chat(message)
    assert (error.value.status, error.value.param) == (400, 'messages[0]')


def test_a_message_with_empty_fields_comes_back():
    """As clients write out what they have received."""
    empty = {'tool_calls': None, 'function_call': None, 'images': None, 'refusal': None}
    asked = chat({'role': 'assistant', 'content': 'b', 'annotations': []} | empty)
    assert [(each.role, each.text) for each in asked.messages] == [
        ('assistant', 'b'), ('user', 'a')]  # fmt: skip


@pytest.mark.parametrize(('more', 'field'), [
    ({'modalities': ['image']}, 'modalities'),
    ({'stream': True, 'stream_options': {'include_usage': 'no'}}, 'include_usage'),
])  # fmt: skip
def test_what_a_chat_would_not_do_is_refused(more, field):
    with pytest.raises(ApiError) as error:
        chat(**more)
    assert (error.value.status, error.value.param) == (400, field)


def test_an_image_is_opaque():
    for given in (None, 'auto', 'opaque'):
        assert forms.image_generation({'prompt': 'a', 'background': given}, 'm').prompt == 'a'
    with pytest.raises(ApiError, match='only background="opaque" is supported'):
        forms.image_generation({'prompt': 'a', 'background': 'transparent'}, 'm')
