"""A chat with a Qwen tokenizer: turns as in training, and an answer ends at any of its ends."""

import itertools

import numpy as np
import pytest
from small_bpe import small_chatml
from tiny_sampler import full_forward, make_sampler

from rf_jax.data import conversation
from rf_jax.data.conversation import Tokens
from rf_jax.data.messages import assistant, user
from rf_jax.generation.chat_answer import LENGTH, Settings

pytest.importorskip('tokenizers')
pytestmark = pytest.mark.slow

HOW = {'max_tokens': 12, 'temperature': 1.0, 'images': False}


@pytest.fixture(scope='module')
def sampler():
    """Ends its answers in some contexts, in either way: these logits vary more than others."""
    made = make_sampler('ffn', small_chatml())
    made.config.data.capacity.update(text=400, vision=32, representation=32, vision_images=4)
    kernel = made.params['text_head']['kernel']
    made.params['text_head']['kernel'] = kernel.at[:, list(made.tokenizer.ends)].multiply(4.0)
    return made


@pytest.fixture(scope='module')
def talked(sampler):
    """(conversation, {text tokens before: logits of the next}, {ends that were sampled})."""
    talk, seen, ends = sampler.conversation(), {}, set()
    engine, decode = talk._engine, talk._engine.programs.decode

    def noted(params, fields, context, place, left, rule, forbidden):
        seen[int(place[0])] = np.asarray(context.logits[0])
        found = decode(params, fields, context, place, left, rule, forbidden)
        ends.update({int(token) for token in found[2][:, 0]} & set(sampler.tokenizer.ends))
        return found

    engine.programs.decode = noted
    for seed in range(8):
        talk.send(f'what is this {seed}?', seed=seed, **HOW)
    engine.programs.decode = decode
    return talk, seen, ends


def test_every_turn_begins_and_ends_as_in_training(sampler, talked):
    special, (talk, _, ends) = sampler.tokenizer, talked
    assert ends == set(special.ends), 'the test needs answers that end in either way'
    if talk._engine.answers[0].ended == LENGTH:
        talk._row.end_turn()
    ids = [i for piece in talk._row.pieces if isinstance(piece, Tokens) for i in piece.ids]
    assert special.pad not in ids, 'the next turn sees the end that training has'
    cuts = [i for i, token in enumerate(ids) if token == special.bos] + [len(ids)]
    turns = [ids[first:last] for first, last in itertools.pairwise(cuts)]
    assert len(turns) == 16
    for number, turn in enumerate(turns):
        role = ('user', 'assistant')[number % 2]
        before, between = special.chat.before[role], special.chat.between
        assert tuple(turn[: len(before)]) == before
        end = turn[len(before) :] if number == 15 else turn[len(before) : -len(between)]
        assert end.count(special.eos) == 1 and end[-1] == special.eos
        assert number == 15 or tuple(turn[-len(between) :]) == between


def test_a_cached_chat_equals_the_full_forward(sampler, talked):
    talk, seen, _ = talked
    right = full_forward(sampler)(talk._row)
    for before, logits in seen.items():
        np.testing.assert_allclose(logits, right[before - 1], atol=1e-5, err_msg=str(before))
    assert len(seen) >= 8


def test_said_at_once_is_said_turn_by_turn(sampler):
    """Of a conversation that is given whole, as an endpoint gets it."""
    turns = [user('a red heart'), assistant('two small dogs'), user('what is this?')]
    row = sampler.chat_row()
    row.say(turns)
    template = conversation.Template(sampler.tokenizer, 200, row._template.counts)
    assert row.pieces == [*template.pieces(turns), *template.answer_begins()]
    assert row.pieces[-1].ids == sampler.tokenizer.chat.answer_begins


def test_spare_rows_are_never_sampled(sampler):
    """At any temperature: they are not text."""
    kernel = sampler.params['text_head']['kernel']
    spare = sorted(set(sampler.tokenizer.specials) - set(sampler.tokenizer.ends))
    sampler.params['text_head']['kernel'] = kernel.at[:, spare].multiply(20.0)
    engine, row = sampler.chat_engine(1), sampler.chat_row()
    row.say([user('what is this?')])
    engine.start(0, row, Settings(max_tokens=16, temperature=2.0, images=False,
                                  sampling=sampler.options()))  # fmt: skip
    said = engine.step()[0].tokens
    sampler.params['text_head']['kernel'] = kernel
    assert said and not set(said) & set(spare)
