"""thinking.py: texts and images come as the conversations of training have them."""

from collections import Counter

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from shrink import shrink
from small_bpe import small_chatml
from tiny_sampler import WORDS, make_sampler

from configs import base
from rf_jax import sample
from rf_jax.data import conversation, layout
from rf_jax.data.messages import DraftPart, ImagePart, Message, TextPart, assistant, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation import chat, thinking
from rf_jax.generation.chat_row import ChatRow, Fitted
from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import UserError

PROMPTS = ['a red heart', 'two small dogs', 'a red heart']
CAPACITY = {'text': 96, 'vision': 32, 'representation': 32, 'vision_images': 4}
HOW = {'steps': 2, 'max_tokens': 4}


@pytest.mark.parametrize('format', ['plain', 'chatml'])
def test_a_chat_has_the_tokens_of_training_where_training_has_them(format):
    """A draft of training, and one that was generated: what follows finds the same before it."""
    config = shrink(base.get_config())
    if format == 'chatml':
        pytest.importorskip('tokenizers')
        special = small_chatml()
    else:
        special = SentencePieceTokenizer.train(WORDS * 3, 384)
    pixels = np.zeros((64, 64, 3), np.uint8)
    draft = GeneratedImage(pixels, np.zeros((2, 2), np.int32), '', 0)
    row = ChatRow(config, special, 3 * 16**2)
    row.config.data.capacity.update(CAPACITY)
    row.say([user('draw a red heart')])
    row.begin(assistant(draft, 'two small dogs'))
    row.wrote([special.image])
    row.drawn(Fitted(pixels, np.zeros(4, np.int32)))
    row.end_turn()
    template = conversation.Template(special, 80, Counter())
    parts = DraftPart(0), TextPart('two small dogs'), ImagePart(1)
    pieces = template.pieces([user('draw a red heart'), Message('assistant', parts)])
    learned = conversation.to_spans(
        pieces, lambda number: (4, 4), lambda number, pool: None, row.pool
    )
    given = row.spans(row.pieces, conversation.NOTHING, 2, pixels=False)
    capacity = CAPACITY | {'pixels': 32, 'pixel_images': 2}
    trained, chatted = (
        layout.make_batch([[spans]], capacity, 3 * 16**2) for spans in (learned, given)
    )
    cached = sum(capacity[name] for name in ('text', 'vision', 'representation'))
    for name in ('segment', 'order', 'reach', 'position'):
        np.testing.assert_array_equal(trained[name][:, :cached], chatted[name][:, :cached])
    for name in ('text_tokens', 'cells'):
        np.testing.assert_array_equal(trained[name], chatted[name])


@pytest.fixture(scope='module')
def sampler():
    made = make_sampler('ffn')
    made.config.data.capacity.update(CAPACITY)
    return made


@pytest.mark.slow
def test_texts_and_images_may_be_given_and_each_prompt_is_answered_alone(sampler):
    drafts = thinking.draw(sampler, PROMPTS, seed=1, **HOW)
    assert all(isinstance(each, GeneratedImage) for each in drafts)
    assert (drafts[0].image != drafts[2].image).any(), 'prompts of equal text get other images'
    (alone,) = thinking.draw(sampler, PROMPTS[:1], seed=1, **HOW)
    np.testing.assert_array_equal(alone.tokens, drafts[0].tokens)
    texts = ['a blue square', 'flag', 'flag']
    found = thinking.redraw(sampler, PROMPTS, drafts, texts, seed=1, **HOW)
    for (draft, text, image), own, given in zip(found, drafts, texts, strict=True):
        assert draft is own and text == given and image is not draft
    # What the critique says decides, and so does the draft.
    other = thinking.redraw(sampler, PROMPTS, drafts, ['a blue square'] * 3, seed=1, **HOW)
    same, changed = zip(found[0], other[0]), zip(found[1], other[1])
    assert jax.tree.all([np.array_equal(a, b) for a, b in same])
    assert not np.array_equal(*list(changed)[-1])
    (single,) = thinking.redraw(sampler, PROMPTS[0], drafts[0], texts[0], seed=1, **HOW)
    np.testing.assert_array_equal(single[2].tokens, found[0][2].tokens)
    thought = thinking.think(sampler, PROMPTS, texts, seed=1, **HOW)
    assert [text for text, _ in thought] == texts
    assert not np.array_equal(thought[0][1].image, alone.image)


@pytest.mark.slow
def test_what_the_model_writes_itself_is_its_answer_in_a_chat(sampler):
    """Without anything given: `think` is a chat, `redraw` keeps the draft if no image follows."""
    for prompt, (text, image) in zip(PROMPTS[:2], thinking.think(sampler, PROMPTS[:2], **HOW)):
        said = sampler.chat(f'draw {prompt}', **HOW)
        assert text == said.text and (image is None) == (not said.images)
    for draft, _, image in thinking.redraw(sampler, PROMPTS[:2], images=False, **HOW):
        assert image is draft


def test_what_is_given_for_some_prompts_only_is_one_line():
    """Before anything is generated."""
    for call, wrong in (
        (lambda: thinking.think(None, PROMPTS, ['flag']), '1 thoughts and 3 prompts'),
        (lambda: thinking.think(None, PROMPTS, 'flag'), '1 thoughts and 3 prompts'),
        (lambda: thinking.think(None, PROMPTS, [5] * 3), 'thoughts contain 5'),
        (lambda: thinking.redraw(None, PROMPTS, ['a'] * 2), '2 drafts and 3 prompts'),
        (lambda: thinking.redraw(None, PROMPTS, critiques='flag'), '1 critiques and 3 prompts'),
    ):
        with pytest.raises(UserError, match=wrong):
            call()


@pytest.mark.slow
def test_a_prompt_without_room_for_an_image_is_one_line(sampler):
    def left(prompt):
        row = sampler.chat_row()
        row.say([user(f'draw {prompt}')])
        return row.left()

    prompt = 'flag'
    while left(prompt) > 12:
        prompt += ' flag'
    while left(prompt) > 1:
        prompt += 'a'
    assert left(prompt) == 1, 'the test needs another prompt'
    with pytest.raises(UserError, match=r"prompt 'flag flag.*no room for an image after it"):
        thinking.draw(sampler, ['flag', prompt], **HOW)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['think', 'redraw'])
def test_the_command_in_its_modes(sampler, mode, monkeypatch, tmp_path):
    """Its flags are those of images, and text stays greedy."""
    seen = []

    def noted(*given, settings_of=chat.settings_of):
        seen.append(settings_of(*given))
        return seen[-1]

    monkeypatch.setattr(sample.Sampler, 'load', lambda *_, **__: sampler)
    monkeypatch.setattr(chat, 'settings_of', noted)
    if mode == 'think':  # this model is not trained to draw
        answers = thinking._answers
        monkeypatch.setattr(
            thinking, '_answers', lambda s, p, b, n, draw, how: answers(s, p, b, n, True, how)
        )
    monkeypatch.setattr(sampler, 'config', sampler.config.copy_and_resolve_references())
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(workdir=tmp_path, out=tmp_path / 'out', prompt=['flag'], mode=mode,
                             number=1, steps=2, temperature=0.5, top_k=3):  # fmt: skip
        sample.main([])
    assert {(each.temperature, each.top_k) for each in seen} == {(0.0, 0)}
    of_images = {each.sampling for each in seen}
    assert of_images == {sampler.options(steps=2, temperature=0.5, top_k=3)}
    assert len(list((tmp_path / 'out').glob('*.png'))) == 2
