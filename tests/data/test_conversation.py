"""conversation.py: what of a conversation is learned, in which order, and what dropout removes."""

from collections import Counter

import numpy as np
import pytest

from configs import base
from rf_jax.data import conversation, layout, messages, spans
from rf_jax.data.compose import Composer, Draws
from rf_jax.data.conversation import Dropped
from rf_jax.data.layout import Pixels, Representation, Text, Vision
from rf_jax.data.messages import DraftPart, Message, TextPart, assistant, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer

TEXT = ['what is this? a red dog', 'make it blue', 'here it is, blue']


@pytest.fixture(scope='module')
def tokenizer():
    return SentencePieceTokenizer.train(TEXT, 300)


def to_spans(tokenizer, messages, pool=2, max_text=40, counts=None, **dropped):
    """With images of 2 x 4 patches, `dropped` as in `Dropped`."""
    template = conversation.Template(tokenizer, max_text, Counter() if counts is None else counts)
    keep = dropped.pop('keep_positions', False)
    return conversation.to_spans(
        *(template.pieces(messages), lambda image: (2, 4), lambda image, pool: None, pool),
        *(Dropped(**dropped), keep),
    )


def kinds(found):
    return [type(span) for span in found]


def learned(tokenizer, found):
    """What the text tokens must predict, as text, with the names of special tokens."""
    names = {tokenizer.eos: '<eos>', tokenizer.image: '<image>'}
    ids = [t for span in found if isinstance(span, Text) for t in span.targets if t >= 0]
    return [names.get(i) or tokenizer.decode([i]) for i in ids]


@pytest.mark.parametrize('max_text', [40, 8])
@pytest.mark.parametrize('question', ['what is this?', ''])
def test_one_question_is_the_question_of_image_to_text(tokenizer, question, max_text):
    counts, others = Counter(), Counter()
    turn = user(0, question) if question else user(0)
    found = to_spans(tokenizer, [turn, assistant('a red dog')], max_text=max_text, counts=counts)
    text = spans.question_answer_span(tokenizer, question, 'a red dog', max_text, others)
    expected = [[[layout.Vision(2, 4), text]]]
    capacity = dict(zip(layout.SIZES, (48, 4, 0, 0, 1, 0)))
    one, other = (layout.make_batch(rows, capacity, 12) for rows in ([[found]], expected))
    for name in other:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert counts == others


def test_the_loss_is_on_what_the_assistant_writes(tokenizer):
    found = to_spans(tokenizer, [
        Message('system', (TextPart('a dog'),)),
        user('what is this?'), assistant('a red dog'),
        user('make it blue'), assistant(0, 'here it is'),
    ])  # fmt: skip
    words = learned(tokenizer, found)
    assert words.count('<eos>') == 2 and words.count('<image>') == 1
    assert ''.join(words).replace(' ', '') == 'areddog<eos><image>hereitis<eos>'


def test_a_generated_image_is_predicted_generated_and_then_read(tokenizer):
    found = to_spans(
        tokenizer, [user('a dog'), assistant(0), user('what is this?'), assistant('a')]
    )
    assert kinds(found) == [Text, Representation, Pixels, Vision, Text]
    assert found[0].tokens[-2:] == (tokenizer.answer, tokenizer.image)
    assert found[0].targets[-2:] == (tokenizer.image, -1)
    # The model goes on after <answer>, and ends this turn.
    assert found[4].tokens[:3] == (tokenizer.answer, tokenizer.eos, tokenizer.bos)
    assert found[4].targets[0] == tokenizer.eos
    assert len({span.image for span in found[1:4]}) == 1  # one image


def test_images_before_the_text_of_a_turn_come_before_its_first_token(tokenizer):
    found = to_spans(tokenizer, [user(0, 1, 'a', 2, 'dog'), assistant('a')])
    assert kinds(found) == [Vision, Vision, Text, Vision, Text]
    assert found[2].tokens[0] == tokenizer.bos
    assert [span.image for span in found if isinstance(span, Vision)] == [0, 1, 3]


def test_the_end_of_a_truncated_answer_is_not_learned(tokenizer):
    counts = Counter()
    found = to_spans(
        tokenizer, [user('a'), assistant('here it is, blue'), user('a'), assistant('a')],
        max_text=10, counts=counts,
    )  # fmt: skip
    assert learned(tokenizer, found).count('<eos>') == 1 and counts['text_truncated'] == 1


EDIT = [user(0, 'make it blue'), assistant('here it is', 1), user('a red dog'), assistant(2)]


def test_dropped_text_leaves_images_only(tokenizer):
    found = to_spans(tokenizer, EDIT, text=True)
    assert kinds(found) == [Vision, *[Representation, Pixels, Vision] * 2]
    kept = to_spans(tokenizer, EDIT, text=True, keep_positions=True)
    assert orders(kept) == orders(to_spans(tokenizer, EDIT))


@pytest.mark.parametrize('number', [0, 1])
def test_dropped_images_leave_one_to_generate_and_the_text_before_it(tokenizer, number):
    found = to_spans(tokenizer, EDIT, images=True, kept=number)
    assert kinds(found)[-2:] == [Representation, Pixels] and Vision not in kinds(found)
    assert kinds(found).count(Pixels) == 1
    texts = [span for span in found if isinstance(span, Text)]
    assert texts and not any(span.targets for span in texts), 'text may speak of dropped images'
    kept = to_spans(tokenizer, EDIT, images=True, kept=number, keep_positions=True)
    assert orders(kept)[-1] == orders(to_spans(tokenizer, EDIT))[number]


def orders(found):
    """Order of the first representation token of each generated image."""
    row = layout.Row(dict(zip(layout.SIZES, (90, 20, 20, 40, 5, 4))), 12)
    row.add(found)
    begins = row.arrays['cells'][:, 0] < 0
    where = slice(row.start['representation'], row.start['pixels'])
    used = row.arrays['segment'][where] > 0
    return row.arrays['order'][where][begins & used].tolist()


def test_a_dropped_representation_is_hidden_from_pixels_only(tokenizer):
    found = to_spans(tokenizer, EDIT, representation=True)
    assert kinds(found) == kinds(to_spans(tokenizer, EDIT))
    assert not any(s.reads_representation for s in found if isinstance(s, Pixels))


def test_without_tokens_pixels_follow_the_text(tokenizer):
    found = to_spans(tokenizer, EDIT, pool=0)
    assert kinds(found)[:5] == [Vision, Text, Pixels, Vision, Text]


def test_the_last_turn_goes_first():
    assert conversation.without_last_turn(EDIT) == tuple(EDIT[:2])
    assert conversation.without_last_turn(EDIT[:2]) == ()


def redrawn(draft=DraftPart):
    parts = (draft(0), TextPart('make it blue')) if draft else (TextPart('make it blue'),)
    return [user('a red dog'), Message('assistant', (*parts, *assistant(1).parts))]


def test_nothing_is_learned_of_a_draft_but_where_it_stands(tokenizer):
    found = to_spans(tokenizer, redrawn())
    assert kinds(found) == [Text, *[Representation, Pixels, Vision, Text] * 2]
    assert learned(tokenizer, found)[0] == '<image>'  # the model decides to make a draft
    capacity = dict(zip(layout.SIZES, (48, 4, 6, 16, 2, 2)))
    one, other = (
        layout.make_batch([[to_spans(tokenizer, redrawn(part))]], capacity, 12)
        for part in (DraftPart, messages.ImagePart)
    )
    for name in one:
        draft, image = np.split(one[name], 2, 1), np.split(other[name], 2, 1)
        if name in ('representation_weight', 'pixel_weight'):
            assert not draft[0].any() and image[0].any(), name
        elif name == 'target_group':
            assert (draft[0] == -1).all() and (image[0] >= 0).any()
        else:  # it stands where any image stands, and its tokens are known
            np.testing.assert_array_equal(draft[0], image[0], err_msg=name)
        np.testing.assert_array_equal(draft[1], image[1], err_msg=name)


def test_what_follows_a_draft_sees_what_it_sees_of_an_image_just_generated(tokenizer):
    template = conversation.Template(tokenizer, 40, Counter())
    pieces = template.pieces(redrawn())
    given = conversation.to_spans(pieces, lambda i: (2, 4), lambda i, pool: None, 2, given=2)
    capacity = dict(zip(layout.SIZES, (48, 4, 6, 16, 2, 2)))
    one, other = (
        layout.make_batch([[spans]], capacity, 12)
        for spans in (given, to_spans(tokenizer, redrawn()))
    )
    kept = 48 + 4 + 6
    for name in ('segment', 'order', 'reach', 'position'):
        np.testing.assert_array_equal(one[name][:, :kept], other[name][:, :kept], err_msg=name)


def test_a_draft_without_tokens_is_only_read(tokenizer):
    assert kinds(to_spans(tokenizer, redrawn(), pool=0)) == [
        Text,
        Vision,
        Text,
        Pixels,
        Vision,
        Text,
    ]


def test_the_images_to_learn_are_no_drafts():
    assert conversation.learned_images(redrawn()) == [1]
    assert conversation.learned_images([*EDIT, *redrawn()]) == [0, 1, 3]


def composed(tokenizer, turns, number=0, **rates):
    """The spans of the pipeline with these rates of dropout, where all draws are 1 / 2."""
    config = base.get_config()
    config.data.update(patch_size=16, max_text_tokens=40)
    config.data.update({f'{name}_dropout': rates.get(name, 0.0) for name in RATES})
    config.data.capacity.update(
        text=90, vision=20, representation=40, pixels=64, vision_images=5, pixel_images=4
    )
    found = Composer(config, tokenizer).conversation_spans(
        turns, [(32, 64)] * 4, lambda image: lambda *_: None, Draws([0.5] * 4, number), Counter()
    )
    return {
        'text': not any(isinstance(span, Text) for span in found),
        'image': not any(isinstance(span, Vision) for span in found),
        'representation': not any(s.reads_representation for s in found if isinstance(s, Pixels)),
    }, [span for span in found if isinstance(span, Pixels)]


RATES = ('text', 'image', 'representation', 'joint')


@pytest.mark.parametrize('name', [*RATES, ''])
def test_each_rate_drops_its_own_condition_and_the_joint_one_all(tokenizer, name):
    dropped, _ = composed(tokenizer, EDIT, **{name: 0.6})
    assert dropped == {each: name in (each, 'joint') for each in dropped}


def test_the_image_that_is_kept_is_one_to_learn(tokenizer):
    """Of a draft and an image after it, the draw decides nothing: a draft has no loss."""
    for number in range(3):
        _, (kept,) = composed(tokenizer, redrawn(), number, image=0.6)
        assert kept.learned
    kept = [composed(tokenizer, EDIT, number, image=0.6)[1][0].image for number in range(4)]
    assert kept == kept[:2] * 2 and kept[0] != kept[1]
