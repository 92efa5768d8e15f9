"""A stream that is closed early, anywhere: the conversation continues from what was said."""

from types import SimpleNamespace

import numpy as np
import pytest
from shrink import shrink
from tiny_sampler import WORDS

from configs import base
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation.chat import Conversation, Reader, Trimmed
from rf_jax.generation.chat_answer import LENGTH, STOP, Answer, Said
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import UserError

IMAGE = GeneratedImage(np.zeros((64, 64, 3), np.uint8), None, '', 0)


class Engine:
    """Says what it is told to, as a ChatEngine of one row."""

    def __init__(self, tokenizer, *turns):
        self.tokenizer, self.turns, self.answers = tokenizer, list(turns), [None]

    def start(self, number, row, settings):
        if settings.max_tokens == 999:
            raise UserError('no room')
        self.answers[number] = Answer(row, settings, 99)
        self.steps = self.tokenizer.encode(self.turns.pop(0))

    def step(self):
        answer = self.answers[0]
        if answer.ended:
            return {}
        ids = (self.steps.pop(0),)
        answer.ended = '' if self.steps else STOP
        answer.row.wrote([*ids, *([self.tokenizer.eos] if answer.ended else [])])
        return {0: Said(ids, ended=answer.ended)}


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train(WORDS * 3, 384)


@pytest.fixture
def talk(tokenizer):
    """Answers 'a red heart', then 'flag', a token in each step."""
    config = shrink(base.get_config())
    config.data.capacity.text = 200
    engine = Engine(tokenizer, 'a red heart', 'flag')
    return Conversation(
        SimpleNamespace(
            tokenizer=tokenizer,
            options=lambda **_: None,
            chat_row=lambda: ChatRow(config, tokenizer, 3 * 16**2),
            chat_engine=lambda rows: engine,
        )
    )


def said(talk):
    return [(message.role, message.text) for message in talk.messages]


def in_the_row(talk):
    """What the row says, with '.' for the end of an answer."""
    special, pieces = talk._sampler.tokenizer, talk._row.pieces
    return ''.join(special.decode(p.ids) + '.' * p.ids.count(special.eos) for p in pieces)


def test_a_stream_that_is_closed_ends_the_answer_there(talk):
    parts = talk.stream('q')
    assert next(parts) == 'a'
    parts.close()
    assert said(talk) == [('user', 'q'), ('assistant', 'a')]
    talk.send('r')
    assert said(talk)[2:] == [('user', 'r'), ('assistant', 'flag')]
    assert in_the_row(talk) == 'qa.rflag.'


def test_the_next_turn_ends_a_stream_that_is_still_open(talk):
    """And what is left of it says nothing."""
    parts = talk.stream('q')
    next(parts)
    talk.send('r')
    assert said(talk) == [('user', 'q'), ('assistant', 'a'), ('user', 'r'), ('assistant', 'flag')]
    assert list(parts) == [] and len(talk.messages) == 4
    assert in_the_row(talk) == 'qa.rflag.'


def test_a_stream_that_was_never_read_is_an_empty_answer(talk):
    talk.stream('q').close()
    assert talk.send('r').text == 'flag'
    assert said(talk) == [('user', 'q'), ('assistant', ''), ('user', 'r'), ('assistant', 'flag')]
    assert in_the_row(talk) == 'q.rflag.'


def test_a_turn_that_is_refused_leaves_an_open_stream_as_it_is(talk):
    parts = talk.stream('q')
    next(parts)
    with pytest.raises(UserError, match='no room'):
        talk.send('r', max_tokens=999)
    assert ''.join(parts) == ' red heart'
    assert said(talk) == [('user', 'q'), ('assistant', 'a red heart')]


def test_a_stream_closed_at_the_last_piece_keeps_the_whole_answer(talk):
    parts = talk.stream('q')
    while not talk._engine.answers[0].ended:
        next(parts)
    parts.close()
    assert said(talk) == [('user', 'q'), ('assistant', 'a red heart')]


def test_a_stream_closed_before_an_image_keeps_it_in_the_answer(tokenizer):
    """As the row has it."""
    reader = Reader(tokenizer)
    begun = tokenizer.encode('ä')[:-1]  # held back until the image
    assert not list(reader.read(Said(tuple(begun))))
    next(reader.read(Said(image=IMAGE)))
    list(reader.read(Said(ended=LENGTH)))
    assert reader.parts[-1].image is IMAGE


def test_only_white_space_between_words_is_streamed():
    trimmed = Trimmed()
    shown = [trimmed.read(text) for text in (' ', '\n a', ' b', ' ', ' c \n', '')]
    assert shown == ['', 'a', ' b', '', '  c', '']
