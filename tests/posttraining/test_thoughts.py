"""Two-level GRPO: texts by the mean reward of their images, images by those after the same text."""

from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_grpo import built, code_five, config_of, fed, moved

from configs.posttraining import thoughts
from rf_jax.data import conversation, layout, source_list
from rf_jax.data.messages import ImagePart, Message, TextPart, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.posttraining import (
    asking,
    collector,
    episodes,
    policy,
    rewards,
    rollout,
    training_rows,
)
from rf_jax.posttraining.rewards import Prompt, Sample, Source
from rf_jax.posttraining.rollout_programs import ImageRequest
from rf_jax.runtime.errors import UserError
from rf_jax.scenes import riddles, world
from rf_jax.training import train_loop

slow = pytest.mark.slow

RUNG = world.RUNGS['aligned']
APART = ['ab', 'ab']  # two different texts for each prompt
TABLE = np.array([[[1.0, 0], [1, 1]], [[0, 1], [1, 0]]])  # two prompts, two texts, two images
THINK = {
    'grpo.episode': 'think',
    'grpo.policies': ('text', 'representation'),
    'grpo.group_size': 4,
    'grpo.images': 2,
}


def test_a_text_has_the_mean_of_its_images_and_an_image_is_compared_with_those_of_its_text():
    found = policy.by_policy(TABLE, 'group', APART)
    mean = 0.25 / 0.2501
    np.testing.assert_allclose(found['text'][0], [[-mean, -mean], [mean, mean]])
    assert not found['text'][1].any()  # both texts of the second prompt are right half of the time
    high = 0.5 / 0.5001
    expected = [[[high, -high], [0, 0]], [[-high, high], [high, -high]]]
    for name in ('representation', 'flow'):
        np.testing.assert_allclose(found[name], expected)


def test_the_global_deviation_is_that_of_the_level():
    found = policy.by_policy(TABLE, 'global', APART)
    means = np.array([[0.5, 1], [0.5, 0.5]])
    centred = means - means.mean(1, keepdims=True)
    np.testing.assert_allclose(found['text'][..., 0], centred / (means.std() + 1e-4))
    centred = TABLE - TABLE.mean(2, keepdims=True)
    np.testing.assert_allclose(found['representation'], centred / (TABLE.std() + 1e-4))


def test_single_images_are_compared_with_those_of_the_other_texts():
    rewards_ = np.array([[1.0, 0, 0, 1], [3, 3, 3, 3]])
    found = policy.by_policy(rewards_[..., None], 'group', ['abcd', 'abab'])
    for name in ('text', 'representation', 'flow'):
        np.testing.assert_array_equal(
            found[name][..., 0], policy.advantages(rewards_, 'group'), err_msg=name
        )


def test_a_prompt_with_a_missing_reward_has_no_advantage_of_its_texts():
    table = TABLE.copy()
    table[0, 0, 0] = np.nan
    for std in policy.STDS:
        found = policy.by_policy(table, std, APART)
        for name, values in found.items():
            assert not values[0].any() and np.isfinite(values).all()
            right = policy.by_policy(table[1:], std, APART[1:])[name]
            np.testing.assert_array_equal(values[1:], right)


@pytest.mark.parametrize('std', policy.STDS)
def test_equal_texts_are_one_text_with_the_images_of_all(std):
    """Of three texts the first and the last are equal: their images are those of one text."""
    table = np.array([[[1.0, 0], [1, 1], [0, 0]]])
    found = policy.by_policy(table, std, ['aba'])
    centred = np.array([0.25, 1, 0.25]) - 0.5
    means = np.array([0.25, 1, 0.25])
    np.testing.assert_allclose(found['text'][0, :, 0], centred / (means.std() + 1e-4))
    whole = table.std() + 1e-4
    spread = np.std([1, 0, 0, 0]) + 1e-4 if std == 'group' else whole
    expected = [[0.75 / spread, -0.25 / spread], [0, 0], [-0.25 / spread] * 2]
    np.testing.assert_allclose(found['representation'][0], expected)


def test_no_image_is_not_what_was_asked():
    claim = riddles.riddle_set('seen', RUNG, 1)[0].claim
    assert rewards.judged(Prompt('', claim), Source(), Sample('two red circles')) == 0


def ready(state):
    """Off the initial point, and as likely as not to go on with an image after each text token."""
    params = moved(state).params
    params['text_embed']['table'] = params['text_embed']['table'].at[:, 0].set(10.0)
    params['text_head']['kernel'] = params['text_head']['kernel'].at[0, 3].set(1.5)
    return state.replace(params=params, ema=jax.tree.map(lambda x: x.copy(), params))


def counted(values):
    """A reward that gives these values, sample after sample, over and over."""
    calls = iter(range(10**6))
    return lambda *_: values[next(calls) % len(values)]


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """A run with all policies at its start, and its first collection."""
    changes = {'grpo.policies': ('text', 'representation', 'flow')}
    changes |= {'grpo.kl': {'text': 0.1, 'representation': 0.1, 'flow': 0.1}}
    run = built(tmp_path_factory.mktemp('run'), THINK | changes)
    state = ready(run.initialise())
    feed = fed(run, state, counted(TABLE.ravel()))
    return run, state, feed, *feed.collect(state.params, 0)


def texts_of(feed, state):
    """Of the first collection."""
    found = feed.episode.collect(feed.run, feed.rollouts, state.params, 0)
    return episodes.texts_of(found.samples, feed.config)


def drawn(rows):
    """Whether a row has an image."""
    return rows['representation_weight'].any(1)


@slow
def test_log_probabilities_of_both_levels_are_those_of_training(started):
    run, state, _, rows, seen = started
    assert seen['rollout/log_prob_error'] < 1e-4
    assert 0 < seen['rollout/without_image'] < 1
    copy = jax.tree.map(lambda x: x.copy(), state)
    _, metrics = run.train_step(copy, run.put(rows))
    for name in run.config.grpo.policies:
        assert float(metrics[f'ratio_{name}']) == pytest.approx(1, abs=1e-4)
        assert float(metrics[f'kl_{name}']) == pytest.approx(0, abs=1e-6)
    assert float(metrics['gradient_norm']) > 0


@slow
def test_a_thought_is_as_likely_in_the_row_of_each_of_its_images(started):
    *_, rows, _ = started
    weight = rows['text_weight'].reshape(8, 2, -1)
    old = rows['text_old'].reshape(weight.shape)
    np.testing.assert_array_equal(weight[:, 0], weight[:, 1])
    np.testing.assert_allclose(weight.sum(2), 1, rtol=1e-6)
    np.testing.assert_allclose(old[:, 0] * weight[:, 0], old[:, 1] * weight[:, 1], atol=1e-6)


@slow
def test_an_image_follows_the_token_that_begins_one_and_no_other(started):
    run, _, _, rows, _ = started
    last = [row[weight > 0][-1] for row, weight in zip(rows['text_targets'], rows['text_weight'])]
    np.testing.assert_array_equal(drawn(rows), np.array(last) == run.tokenizer.image)
    np.testing.assert_array_equal(drawn(rows), rows['pixel_weight'].any(1))
    ended = [run.tokenizer.eos in row[weight > 0][:-1] for row, weight in
             zip(rows['text_targets'], rows['text_weight'])]  # fmt: skip
    assert not any(ended)


@slow
def test_each_level_has_its_own_advantage(started):
    _, state, feed, rows, seen = started
    # The values are given to samples in turn: two prompts of four texts, two images each.
    texts = texts_of(feed, state)
    expected = policy.by_policy(np.resize(TABLE, (2, 4, 2)), 'group', texts)
    for name, weight in (('text', 'text_weight'), ('representation', 'representation_weight')):
        for row, value in enumerate(expected[name].ravel()):
            own = rows[f'{name}_advantage'][row][rows[weight][row] > 0]
            np.testing.assert_allclose(own, value, rtol=1e-6, err_msg=f'{name} {row}')
    assert seen['reward/spread_of_texts'] == pytest.approx(np.std([0.5, 1, 0.5, 0.5]))
    assert seen['reward/spread_in_text'] == pytest.approx(0.375)
    assert seen['reward/images_all_alike'] == 0.25


@slow
@pytest.mark.parametrize(
    'values, learned, still',
    [
        ([0.0, 1, 1, 0], 'representation', 'text'),  # equal means of all texts
        ([0.0, 0, 1, 1], 'text', 'representation'),  # equal images of each text
    ],
)
def test_a_level_without_differences_has_no_gradient(tmp_path, values, learned, still):
    norms = {}
    for name in (learned, still):
        run = built(tmp_path / name, THINK | {'grpo.policies': (name,)})
        state = ready(run.initialise())
        rows, _ = fed(run, state, counted(values)).collect(state.params, 0)
        assert name == 'text' or drawn(rows).any()
        _, metrics = run.train_step(state, run.put(rows))
        norms[name] = float(metrics['gradient_norm'])
    assert norms[learned] > 0 and norms[still] == 0


@slow
def test_a_row_stands_as_the_conversation_that_taught_it(started):
    """The same thought, and the conversation of configs/posttraining/think.py."""
    run, _, feed, *_ = started
    config, tokenizer, pairs = run.config, run.tokenizer, [(None, 'draw a cat')]
    ids = tokenizer.encode('dog')
    tokens = np.array([[*ids, tokenizer.image, tokenizer.eos, tokenizer.eos]], np.int32)
    (said,) = training_rows.answers(feed.rollouts, pairs, rollout.Texts(tokens, None))
    found = feed.rollouts.images(run.initialise().params, [ImageRequest(said, 64, 64, 0)])
    rows = training_rows.of_images(feed.rollouts, [ImageRequest(said, 64, 64, 0)], found)

    turns = [user('draw a cat'), Message('assistant', (TextPart('dog'), ImagePart(0)))]
    pieces = conversation.Template(tokenizer, config.data.max_text_tokens, Counter()).pieces(turns)
    spans = conversation.to_spans(pieces, lambda _: (4, 4), lambda *_: None, 2)
    learned = layout.make_batch([[spans]], config.data.capacity, feed.rollouts.channels)
    text, starts = len(said.tokens), np.cumsum([config.data.capacity[s] for s in layout.STREAMS])
    for name in ('text_tokens', 'text_targets'):
        np.testing.assert_array_equal(rows[name][0, :text], learned[name][0, :text])
    for name in ('segment', 'order', 'reach', 'position'):
        for at in (
            slice(0, text),
            slice(starts[1], starts[1] + 5),
            slice(starts[2], starts[2] + 16),
        ):
            np.testing.assert_array_equal(rows[name][0, at], learned[name][0, at], err_msg=name)


@slow
def test_both_levels_find_their_optimum(tmp_path):
    """Thoughts that begin the image at once, and images of code 5 alone."""
    steps = 12
    changes = THINK | {'data.batch_size': 64, 'grpo.images': 4, 'steps': steps}
    run = built(tmp_path, changes | {'checkpoint.every': 1000})
    new, seen = run.initialise, []
    run.initialise = lambda: ready(new())

    def reward(prompt, source, sample):
        there = sample.tokens is not None
        seen.append((there and sample.text == '', there and code_five(prompt, source, sample)))
        return sum(seen[-1]) / 2

    train_loop.train(run, feed=fed(run, run.initialise(), reward))
    means = np.reshape(seen, (steps, -1, 2)).mean(1)
    assert (means[0] < 0.6).all()
    assert (means[-5:].mean(0) > 0.9).all(), means.round(2)


@slow
@pytest.mark.parametrize('episode, rows_of_text', [('both', 3), ('describe', 1)])
def test_captions_of_unified_grpo_can_have_several_images(tmp_path, episode, rows_of_text):
    """A caption has the mean reward of its images; in `both` its row is before theirs."""
    trained = {'both': ('text', 'representation'), 'describe': ('text',)}[episode]
    changes = {'grpo.episode': episode, 'grpo.policies': trained, 'grpo.group_size': 4}
    run = built(tmp_path, changes | {'grpo.images': 2, 'data.batch_size': 8 * rows_of_text})
    state, asked = ready(run.initialise()), []
    values = counted(TABLE.ravel())

    def reward(prompt, source, sample):
        asked.append(sample)
        return values()

    feed = fed(run, state, reward)
    rows, seen = feed.collect(state.params, 0)
    pairs = [asked[i : i + 2] for i in range(0, 16, 2)]
    assert all(a.text == b.text and (a.image != b.image).any() for a, b in pairs)
    assert seen['rollout/log_prob_error'] < 1e-4
    texts = texts_of(feed, state)
    expected = policy.by_policy(np.resize(TABLE, (2, 4, 2)), 'group', texts)
    by_text = {name: array.reshape(8, rows_of_text, -1) for name, array in rows.items()
               if name.endswith(('advantage', 'weight'))}  # fmt: skip
    text, weight = by_text['text_advantage'][:, 0], by_text['text_weight']
    assert weight[:, 0].any(1).all() and not weight[:, 1:].any()
    np.testing.assert_allclose(text[:, 0], expected['text'][..., 0].ravel(), rtol=1e-6)
    if episode == 'both':
        image = by_text['representation_advantage'][:, 1:, 0]
        np.testing.assert_allclose(image.ravel(), expected['representation'].ravel(), rtol=1e-6)
        weight = by_text['representation_weight']
        assert weight[:, 1:].any(2).all() and not weight[:, 0].any()


@slow
def test_equal_captions_have_equal_images(tmp_path):
    changes = {'grpo.episode': 'describe', 'grpo.policies': ('text',)}
    run = built(tmp_path, changes)
    state = ready(run.initialise())
    asked, sizes = [('a', 0), ('b', 0), ('a', 1), ('a', 0)], [(64, 64)] * 4
    found = fed(run, state, counted([1.0])).rollouts.decoded(asked, 7, sizes)
    np.testing.assert_array_equal(found[3], found[0])
    assert (found[1] != found[0]).any() and (found[2] != found[0]).any()


@pytest.mark.nightly
@slow
def test_eight_devices_agree_with_one(tmp_path):
    losses = {}
    for devices in (1, 8):
        run = built(tmp_path / str(devices), THINK | {'mesh.fsdp': devices}, devices)
        state, losses[devices] = ready(run.initialise()), []
        feed = fed(run, state, counted(TABLE.ravel()))
        for number in range(2):
            rows, _ = feed.collect(state.params, number)
            state, metrics = run.train_step(state, run.put(rows))
            losses[devices].append([float(metrics[n]) for n in ('loss', 'gradient_norm')])
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-3, atol=1e-6)
    assert losses[1][0][1] > 0


@pytest.mark.nightly
@slow
def test_a_killed_run_ends_bit_equal(tmp_path):
    changes = THINK | {'steps': 3, 'checkpoint.every': 1, 'log.samples_every': 1}

    def run_of(folder, hook=None):
        run = built(folder, changes)
        new = run.initialise
        run.initialise = lambda: ready(new())
        return train_loop.train(run, hook, feed=fed(run, run.initialise(), reward), unit=1)

    def reward(prompt, source, sample):
        return float(len(sample.text)) if sample.image is None else float(sample.image.mean())

    def crash(number, *_):
        if number == 2:
            raise Crash

    whole = run_of(tmp_path / 'whole')
    with pytest.raises(Crash):
        run_of(tmp_path / 'cut', crash)
    again = run_of(tmp_path / 'cut')
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)


class Crash(Exception):
    pass


def test_riddles_are_those_of_training_but_not_of_the_evaluation():
    config = thoughts.get_config()
    source = source_list.build('scenes:aligned/48/riddles=think/count=4', 10**6)[0]
    batches = SimpleNamespace(sources=[source])
    run = SimpleNamespace(config=config, batches=batches)
    asked = asking.prompts_of(run, 3, 500)
    texts = [each.text for each in asked]
    assert texts == [each.text for each in asking.prompts_of(run, 3, 500)]
    assert texts != [each.text for each in asking.prompts_of(run, 4, 500)]
    known = {each.text: each for each in riddles.riddle_set('seen', source.rung, 10**4)}
    assert all(known[each.text].claim == each.claim for each in asked)
    evaluated = {each.text for each in riddles.riddle_set('seen', source.rung, 200)}
    assert not evaluated & set(texts)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'grpo.images': 0}, r'grpo\.images=0: expected a whole number of at least 1'),
        ({'grpo.images': 3}, r'16 rows are not a multiple of 12.*grpo\.images=3'),
        (
            {'grpo.episode': 'generate', 'grpo.policies': ('representation',)},
            r"grpo\.images=2: grpo\.episode='generate' has no texts",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        collector.check(config_of(THINK | changes))


def test_a_thought_that_no_row_can_hold_is_refused():
    with pytest.raises(UserError, match=r'grpo\.text_tokens=30 .* exceed data\.capacity\.text=32'):
        collector.check_text(config_of(THINK | {'grpo.text_tokens': 30}), SentencePieceTokenizer)
