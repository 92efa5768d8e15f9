"""messages.py: the forms that conversations come in, and what is said of those that are wrong."""

import numpy as np
import pytest

from rf_jax.data import messages
from rf_jax.data.messages import DraftPart, ImagePart, Message, TextPart, assistant, user

RIGHT = (
    Message('user', (ImagePart('a.jpg'), TextPart('What is it?'))),
    Message('assistant', (TextPart('A cat.'),)),
)
OPENAI = {
    'messages': [
        {'role': 'user', 'content': [{'type': 'image', 'image': 'a.jpg'},
                                     {'type': 'text', 'text': 'What is it?'}]},
        {'role': 'assistant', 'content': 'A cat.'},
    ]
}  # fmt: skip
URLS = {
    'messages': [
        {'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': 'a.jpg'}},
                                     {'type': 'text', 'text': 'What is it?'}]},
        {'role': 'assistant', 'content': [{'type': 'text', 'text': 'A cat.'}]},
    ]
}  # fmt: skip
LLAVA = {
    'id': '7',
    'image': 'a.jpg',
    'conversations': [
        {'from': 'human', 'value': '<image>\nWhat is it?'},
        {'from': 'gpt', 'value': 'A cat.'},
    ],
}
TRL = {
    'images': [{'path': 'a.jpg'}],
    'messages': [
        {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]},
        {'role': 'assistant', 'content': 'A cat.'},
    ],
}
FACTORY = {
    'images': ['a.jpg'],
    'messages': [
        {'role': 'user', 'content': '<image>What is it?'},
        {'role': 'assistant', 'content': 'A cat.'},
    ],
}


def of_image(**part):
    """A line whose first part shows an image."""
    content = [part, {'type': 'text', 'text': 'What is it?'}]
    return {'messages': [{'role': 'user', 'content': content}, OPENAI['messages'][1]]}


OTHERS = [
    of_image(type='image_url', image_url='a.jpg'),
    of_image(type='image', url='a.jpg'),
    of_image(type='image', path='a.jpg', text=None),
    LLAVA | {'conversations': [{'from': 'Human', 'value': '<image>\nWhat is it?'},
                               {'from': 'GPT', 'value': 'A cat.'}]},
]  # fmt: skip


@pytest.mark.parametrize('fields', [OPENAI, URLS, LLAVA, TRL, FACTORY, *OTHERS])
def test_all_forms_give_the_same_messages(fields):
    assert messages.entry(fields) == RIGHT


def test_images_stand_where_their_marks_are():
    value = 'Between <image> and <image>, which is larger?'
    found = messages.entry({
        'image': ['a.jpg', 'b.jpg'],
        'conversations': [{'from': 'human', 'value': value}, {'from': 'gpt', 'value': 'a'}],
    })  # fmt: skip
    assert found[0].parts == (
        TextPart('Between'), ImagePart('a.jpg'), TextPart('and'), ImagePart('b.jpg'),
        TextPart(', which is larger?'),
    )  # fmt: skip


def test_text_keeps_its_lines():
    found = messages.parse([{'role': 'user', 'content': ' one\n  two\n'}])
    assert found[0].text == 'one\n  two'


def test_a_mark_is_text_in_a_chat():
    """A user who types `<image>` has given no image."""
    assert messages.parse([{'role': 'user', 'content': 'what is <image>?'}]) == (
        user('what is <image>?'),
    )


def test_a_chat_may_hold_arrays_and_message_objects():
    pixels = np.zeros((2, 2, 3), np.uint8)
    first = user(pixels, 'what is it?')
    content = [{'type': 'image', 'image': pixels}]
    found = messages.parse([first, assistant('nothing'), {'role': 'user', 'content': content}])
    assert found[0] is first and found[2].images[0] is pixels


def conversation(*turns, **more):
    return {'messages': [{'role': role, 'content': content} for role, content in turns]} | more


@pytest.mark.parametrize(
    'fields, said',
    [
        (conversation(('user', 'hello')), 'no message of the assistant'),
        (conversation(('bot', 'a'), ('robot', 'b')), "message 2 has role 'robot'; known: system"),
        (conversation(('user', '<image>'), ('assistant', 'b')), 'message 1: more <image> marks'),
        (conversation(('user', 'a'), ('assistant', 'b'), images=['x.png']),
         '1 images, but only 0 <image> marks'),
        (conversation(('user', ''), ('assistant', 'b')), 'message 1 is empty'),
        (conversation(('user', None), ('assistant', 'b')), 'the content is a NoneType'),
        (conversation(('user', 5), ('assistant', 'b')), 'the content is a int'),
        (conversation(('user', ['a']), ('assistant', 'b')), "part 'a': expected"),
        (conversation(('user', [{'type': 'text'}]), ('assistant', 'b')), "part {'type': 'text'}"),
        (conversation(('user', [{'type': 'image', 'image': 7}]), ('assistant', 'b')),
         'an image is int, expected a path'),
        (conversation(('user', [{'type': 'image', 'image': 'a.png'}]),
                      ('system', [{'type': 'image', 'image': 'a.png'}])),
         'message 2: a system message cannot have images'),
        (conversation(), 'there are no messages'),
        ({'messages': 'hello'}, 'messages are a str, expected a list'),
        ({'messages': ['hello']}, 'message 1 is a str, expected an object'),
        ({'caption': 'a cat', 'file': 'a.png'}, r'no "messages" \(there is caption, file\)'),
        (conversation(('user', 'a'), ('assistant', 'b'), images=5), '"images" is a int'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(fields, said):
    with pytest.raises(ValueError, match=said):
        messages.entry(fields)


@pytest.mark.parametrize(
    ('message', 'said'),
    [
        (Message('user', ('a cat',)), r"1: a part is a str, .* messages\.user\('draw"),
        (Message('user', 'a cat'), '1: a part is a str'),
        (Message('user', None), '1: a part is a NoneType'),
        (Message('bot', (TextPart('a cat'),)), "1 has role 'bot'; known: system"),
    ],
)
def test_a_message_object_is_checked(message, said):
    with pytest.raises(ValueError, match=said):
        messages.parse([message])


@pytest.mark.parametrize(
    ('said', 'kind'),
    [({}, ImagePart), ({'learned': True}, ImagePart), ({'learned': False}, DraftPart)],
)
def test_an_image_that_is_not_learned_is_a_draft(said, kind):
    for image in ({'image': 'a.jpg'}, {}):
        content = [{'type': 'image', **image, **said}]
        (message,) = messages.parse(
            [{'role': 'assistant', 'content': content}], [] if image else ['a.jpg']
        )
        assert [type(part) for part in message.parts] == [kind] and message.images == ['a.jpg']
    with pytest.raises(ValueError, match='learned'):
        messages.parse(
            [{'role': 'assistant', 'content': [{'type': 'image', 'image': 'a', 'learned': 0}]}]
        )


def test_a_file_url_is_a_path():
    found = messages.entry(of_image(type='image_url', image_url={'url': 'file:///a/my%20cat.jpg'}))
    assert found[0].images == ['/a/my cat.jpg']


@pytest.mark.parametrize(
    'url', ['https://a.b/c.png', 'data:image/png;base64,' + 9999 * 'A', 's3://bucket/a.png']
)
def test_other_urls_are_refused_in_a_short_line(url):
    with pytest.raises(ValueError, match='is a URL; expected a file') as error:
        messages.entry(of_image(type='image_url', image_url={'url': url}))
    assert len(str(error.value)) < 120


def test_the_system_field_of_a_line_is_a_message():
    found = messages.entry({'system': ' Be kind. ', **OPENAI})
    assert found == (Message('system', (TextPart('Be kind.'),)), *RIGHT)
    assert messages.entry({'system': '', **OPENAI}) == RIGHT
    own = {'messages': [{'role': 'system', 'content': 'Be brief.'}, *OPENAI['messages']]}
    assert messages.entry({'system': 'Be kind.', **own})[0].text == 'Be brief.'


def test_an_empty_name_is_no_image():
    turns = [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}]
    assert len(messages.entry({'image': '', 'conversations': turns})) == 2


def test_a_message_that_must_not_be_learned_is_refused():
    turns = [OPENAI['messages'][0], OPENAI['messages'][1] | {'weight': 0}]
    with pytest.raises(ValueError, match='message 2 has weight 0'):
        messages.entry({'messages': turns})
    assert messages.entry({'messages': [turns[0], turns[1] | {'weight': 1}]}) == RIGHT
