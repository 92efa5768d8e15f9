"""What of an answer a client is shown: stop texts, white space, images, numbers of tokens."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('starlette')

from rf_jax.data.messages import Message
from rf_jax.generation.chat import Reader
from rf_jax.generation.chat_answer import LENGTH, STOP, Said
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.serving import chat_route
from rf_jax.serving.errors import ApiError
from rf_jax.serving.metrics import Metrics
from rf_jax.serving.reply import Answered, StopText, completion
from rf_jax.serving.sent_images import SentImages

IMAGE = Said(image=GeneratedImage(np.zeros((8, 8, 3), np.uint8), None, '', 0))
# A token is a character.
LETTERS = SimpleNamespace(decode=lambda ids: ''.join(map(chr, ids)))


def text(letters, ended=''):
    return Said(tuple(map(ord, letters)), ended=ended)


def deltas_of(answer, said):
    server = SimpleNamespace(metrics=Metrics(), sent=SentImages())
    job = SimpleNamespace(cancelled=False)

    async def events():
        for each in said:
            yield 0, each

    async def deltas():
        found = chat_route._said(server, events(), [answer], [job])
        return [delta async for _, delta in found if delta]

    found = asyncio.run(deltas())
    assert job.cancelled == bool(answer.stop.found)
    return found


def shown(*said, stops=()):
    """(the pieces, '[]' for an image; the choice that is not streamed; its number of tokens)."""
    answer = Answered(Reader(LETTERS), StopText(stops))
    pieces = [delta.get('content', '[]') for delta in deltas_of(answer, said)]
    reply = completion([answer], {}, 0)
    (choice,) = reply['choices']
    assert ''.join(p for p in pieces if p != '[]') == choice['message']['content']
    return pieces, choice, reply['usage']['completion_tokens']


def test_a_streamed_answer_has_no_white_space_that_the_whole_has_not():
    pieces, _, tokens = shown(text(' \n a'), text('b '), text(' c '), text(' \n', STOP))
    assert pieces == ['a', 'b', '  c'] and tokens == 11


def test_texts_around_an_image_are_those_of_the_message():
    said = text('See: '), IMAGE, text(' more? ', STOP)
    pieces, choice, _ = shown(*said)
    assert pieces == ['See:', '[]', ' more?']
    reader = Reader(LETTERS)
    for each in said:
        list(reader.read(each))
    assert choice['message']['content'] == Message('assistant', tuple(reader.parts)).text
    assert shown(IMAGE, text(' more', STOP))[0] == ['[]', 'more']


@pytest.mark.parametrize('letters', [('ab#cd#ef',), ('ab', '#c', 'd#ef'), tuple('ab#cd#ef')])
def test_tokens_are_counted_up_to_the_stop_text(letters):
    pieces, choice, tokens = shown(*map(text, letters), text('gh', LENGTH), stops=('#cd#',))
    assert ''.join(pieces) == 'ab' and tokens == 6 and choice['finish_reason'] == 'stop'


def test_white_space_may_be_a_stop_text():
    assert shown(text('\n\nab', STOP), stops=('\n\n',))[0::2] == ([], 2)
    assert shown(text('ab\n\ncd'), stops=('\n\n',))[0::2] == (['a', 'b'], 4)


def test_what_may_begin_a_stop_text_comes_before_an_image():
    """And no stop text goes on after it."""
    pieces, choice, tokens = shown(text('ab#'), IMAGE, text('#c', STOP), stops=('##',))
    assert ''.join(pieces) == 'ab#[] #c' and tokens == 5 and choice['finish_reason'] == 'stop'


def test_nothing_is_shown_after_a_stop_text():
    pieces, _, tokens = shown(text('a#'), IMAGE, text('b'), stops=('#',))
    assert pieces == ['a'] and tokens == 2


def test_what_was_held_back_is_shown_at_the_end():
    pieces, choice, _ = shown(text('ab#', LENGTH), stops=('##',))
    assert ''.join(pieces) == 'ab#' and choice['finish_reason'] == 'length'


def test_a_client_that_joins_deltas_has_all_images():
    """OpenAI's, in `client.chat.completions.stream`."""
    deltas = pytest.importorskip('openai.lib.streaming._deltas')
    answer, joined = Answered(Reader(LETTERS), StopText(())), {}
    for delta in deltas_of(answer, [text('a'), IMAGE, IMAGE, text('b', STOP)]):
        joined = deltas.accumulate_delta(joined, delta)
    (choice,) = completion([answer], {}, 0)['choices']
    assert joined['content'] == choice['message']['content'] == 'a b'
    assert joined['images'] == choice['message']['images'] and len(joined['images']) == 2


def test_a_conversation_without_room_for_an_answer_names_the_field():
    config = SimpleNamespace(data=SimpleNamespace(capacity=SimpleNamespace(text=4)))
    row = SimpleNamespace(say=lambda messages: None, left=lambda: 0)
    server = SimpleNamespace(sampler=SimpleNamespace(config=config, chat_row=lambda: row))
    with pytest.raises(ApiError, match=r'no room for an answer \(data\.capacity\.text=4\)'):
        chat_route.row_of(server, [])
