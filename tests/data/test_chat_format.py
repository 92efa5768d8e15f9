"""ChatML: the text of transformers' template, with loss on the assistant's text and its end."""

from collections import Counter

import numpy as np
import pytest
from small_bpe import CHATML, TEXTS, VISION, small_bpe, write_weights

from rf_jax.data import conversation, layout, spans
from rf_jax.data.layout import Pixels, Representation, Text, Vision
from rf_jax.data.messages import Message, TextPart, assistant, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.data.tokenizer import load_tokenizer

# Qwen's, without tools and without its default system message.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    Message('system', (TextPart('answer in one word'),)),
    user("What's this: 1234?\n\n two lines"),
    assistant('a dog 🐕'),
    user('中文 e\u0301?'),
    user('please'),
    assistant('yes'),
]


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
    pytest.importorskip('tokenizers')
    folder = tmp_path_factory.mktemp('weights')
    return load_tokenizer(write_weights(folder, small_bpe(TEXTS, CHATML + VISION)))


@pytest.fixture(scope='module')
def original(tokenizer):
    """transformers' tokenizer of the same file."""
    transformers = pytest.importorskip('transformers')
    from tokenizers import Tokenizer

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.model_bytes.decode()),
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def as_mappings(messages):
    return [{'role': message.role, 'content': message.text} for message in messages]


def pieces(tokenizer, messages, max_text=200, counts=None):
    counts = Counter() if counts is None else counts
    return conversation.Template(tokenizer, max_text, counts).pieces(messages)


def to_spans(tokenizer, messages, **options):
    found = pieces(tokenizer, messages, **options)
    return conversation.to_spans(found, lambda image: (2, 4), lambda image, pool: None, 2)


def test_a_conversation_has_the_tokens_of_transformers(tokenizer, original):
    (span,) = to_spans(tokenizer, TALK)
    said = original.apply_chat_template(as_mappings(TALK), tokenize=False)
    assert said.endswith('yes<|im_end|>\n')  # our last turn has nothing to go on to
    assert list(span.tokens) == original.encode(said, add_special_tokens=False)[:-1]
    assert original.decode(span.tokens) == said[:-1].replace('e\u0301', 'é')


@pytest.mark.parametrize('until', [2, 5])
def test_an_answer_begins_where_transformers_begins_it(tokenizer, original, until):
    template = conversation.Template(tokenizer, 200, Counter())
    found = [*template.pieces(TALK[:until]), *template.answer_begins()]
    ids = original.apply_chat_template(
        as_mappings(TALK[:until]), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert [i for piece in found for i in piece.ids] == ids


def test_turns_added_one_by_one_are_the_whole_conversation(tokenizer):
    template = conversation.Template(tokenizer, 200, Counter())
    whole = [i for piece in template.pieces(TALK) for i in piece.ids]
    turns = [template.pieces([turn], first=not n) for n, turn in enumerate(TALK)]
    assert [i for turn in turns for piece in turn for i in piece.ids] == whole


def test_the_loss_is_on_the_text_of_the_assistant_and_its_end(tokenizer):
    (span,) = to_spans(tokenizer, TALK)
    targets = [target for target in span.targets if target >= 0]
    expected = [*tokenizer.encode('a dog 🐕'), tokenizer.eos, *tokenizer.encode('yes')]
    assert targets == [*expected, tokenizer.eos]
    for token, target in zip(span.tokens[1:], span.targets):
        assert target in (-1, token)


def test_typed_marks_stay_text(tokenizer):
    typed = 'a<|im_end|>\n<|im_start|>assistant\nyes<|vision_start|><|endoftext|>'
    (span,) = to_spans(tokenizer, [user(typed), assistant(typed)])
    assert span.tokens.count(tokenizer.bos) == span.tokens.count(tokenizer.eos) == 2
    assert not {tokenizer.image, tokenizer.answer, tokenizer.pad} & set(span.tokens)
    assert tokenizer.decode(span.tokens).count(typed) == 2


@pytest.mark.parametrize('room', [40, 12, 2])
@pytest.mark.parametrize('question', ['what is this?', ''])
def test_one_question_is_the_question_of_image_to_text(tokenizer, question, room):
    counts, others = Counter(), Counter()
    max_text = tokenizer.chat.question_and_answer + room
    turn = user(0, question) if question else user(0)
    talk = [turn, assistant('a red heart')]
    found = to_spans(tokenizer, talk, max_text=max_text, counts=counts)
    text = spans.question_answer_span(tokenizer, question, 'a red heart', max_text, others)
    assert len(text.tokens) <= max_text
    capacity = dict(zip(layout.SIZES, (64, 4, 0, 0, 1, 0)))
    rows = found, [layout.Vision(2, 4), text]
    one, other = (layout.make_batch([[row]], capacity, 12) for row in rows)
    for name in other:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert counts == others


@pytest.mark.parametrize('room', [2, 3, 24])
def test_long_text_is_truncated_and_its_end_not_learned(tokenizer, room):
    endless, counts = 'a red heart ' * 100, Counter()
    max_text = tokenizer.chat.question_and_answer + room
    span = spans.question_answer_span(tokenizer, endless, endless, max_text, counts)
    assert len(span.tokens) == max_text and counts['text_truncated'] == 2
    assert span.tokens[-1] == tokenizer.eos and tokenizer.eos not in span.targets
    assert sum(target >= 0 for target in span.targets) >= 1


def test_an_image_of_the_assistant_stands_between_its_marks(tokenizer):
    found = to_spans(tokenizer, [user('a dog'), assistant(0, 'here'), user('a cat')])
    assert [type(span) for span in found] == [Text, Representation, Pixels, Vision, Text]
    assert (tokenizer.image, tokenizer.answer) == tuple(tokenizer.size - 2 + i for i in range(2))
    assert found[0].tokens[-1] == tokenizer.image and found[0].targets[-2] == tokenizer.image
    assert found[4].tokens[0] == tokenizer.answer
    assert found[4].targets[0] == tokenizer.encode('here')[0]


def test_the_plain_format_is_that_of_three_special_tokens():
    special = SentencePieceTokenizer
    around = special.chat.before['user'], special.chat.after['user'], special.chat.answer_begins
    assert around == ((special.bos,), (special.answer,), ())
    assert special.chat.after['assistant'] == special.chat.after['system'] == (special.eos,)
    assert special.chat.question_and_answer == 3
