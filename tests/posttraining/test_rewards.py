"""Rewards are plain functions; what goes wrong in one costs its group and nothing else."""

import sys
import threading
from collections import Counter

import numpy as np
import pytest

from rf_jax.posttraining import rewards
from rf_jax.posttraining.rewards import Prompt, Sample, Source
from rf_jax.runtime.errors import UserError
from rf_jax.scenes import judge, language, render, world

RUNG = world.RUNGS['aligned']
SCENE = world.make(0, 3, RUNG)
OTHER = world.make(0, 4, RUNG)


def image(scene):
    return render.render(scene, 48)


def test_the_judge_and_the_objects_recovered():
    caption = language.captions(SCENE, RUNG, np.random.default_rng(0))[0]
    prompt, source = Prompt(caption.text, caption.claim), Source(image(SCENE), SCENE)
    right, wrong = (Sample(image=image(scene)) for scene in (SCENE, OTHER))
    assert rewards.judged(prompt, Source(), right) == 1
    assert rewards.judged(prompt, Source(), wrong) == 0
    assert rewards.recovered(Prompt(''), source, right) == 1
    assert rewards.recovered(Prompt(''), source, wrong) < 1


def test_objects_recovered_counts_missing_and_additional_objects():
    objects = SCENE.objects
    three = [world.Object('ring', 'red', 'large', 'plain', x, 0.5, 0.1) for x in (0.2, 0.5, 0.8)]
    scene = world.Scene(tuple(three), 'dark', 0, 'alike')
    assert judge.f1_of_objects(scene.objects, three[:2]) == pytest.approx(2 * 2 / 5)
    assert judge.f1_of_objects(scene.objects, [*three, *objects]) == pytest.approx(
        6 / (6 + len(objects))
    )
    moved = [world.Object('ring', 'red', 'large', 'plain', 0.4, 0.5, 0.1)]
    one = world.Scene((three[0],), 'dark', 0, 'single')
    assert judge.f1_of_objects(one.objects, moved) == 0


def test_answers_and_words():
    assert rewards.exact_answer(Prompt('?'), Source(answer='Two'), Sample(' two ')) == 1
    assert rewards.exact_answer(Prompt('?'), Source(answer='two'), Sample('three')) == 0
    assert rewards.words(Prompt(''), Source(), Sample('a red ring')) == 3


def never(prompt, source, sample):
    threading.Event().wait()


def raises(prompt, source, sample):
    raise RuntimeError('no model')


def not_a_number(prompt, source, sample):
    return float('nan')


def leaves(prompt, source, sample):
    sys.exit(3)


def forgets(prompt, source, sample):
    pass


@pytest.mark.parametrize(
    'reward, why',
    [
        (never, 'grpo.reward_seconds=0.05'),
        (raises, "raised RuntimeError('no model') (test_rewards.py:"),
        (not_a_number, 'nan'),
        (leaves, 'raised SystemExit(3)'),
        (forgets, 'gave None, expected a number'),
    ],
)
def test_a_reward_that_fails_for_a_group_is_left_out_and_counted(reward, why, caplog):
    def sometimes(prompt, source, sample):
        return reward(prompt, source, sample) if prompt.text == 'bad' else 1.0

    samples = [Sample('a'), Sample('b c')]
    groups = [(Prompt(text), Source(), samples) for text in ('good', 'bad', 'good')]
    counts = Counter()
    with caplog.at_level('WARNING'):
        found = rewards.of_groups({'own': sometimes, 'words': rewards.words}, groups, 0.05, counts)
    np.testing.assert_array_equal(found['own'][[0, 2]], 1)
    np.testing.assert_array_equal(found['words'], [[1, 2]] * 3)
    assert np.isnan(found['own'][1]).all()
    assert counts == {'own': 1}
    assert "reward own of the group of 'bad'" in caplog.text and why in caplog.text


def test_the_judge_cannot_reward_what_is_no_scene():
    with pytest.raises(ValueError, match='only prompts about scenes'):
        rewards.judged(Prompt('a cat'), Source(), Sample(image=image(SCENE)))
    with pytest.raises(ValueError, match='only be counted in scenes'):
        rewards.recovered(Prompt(''), Source(image(SCENE)), Sample(image=image(SCENE)))


def test_unknown_rewards_name_the_known_ones():
    with pytest.raises(UserError, match=r"grpo\.rewards.*'beauty'.*judge"):
        rewards.chosen({'beauty': 1.0}, {})
    with pytest.raises(UserError, match=r'grpo\.rewards is empty'):
        rewards.chosen({}, {})


def test_a_reward_of_the_user_has_a_name_of_its_own():
    with pytest.raises(UserError, match=r"--reward: 'judge' is the name of a reward"):
        rewards.chosen({'judge': 1.0}, {'judge': never})


def test_weights_that_are_all_zero_are_an_error():
    with pytest.raises(UserError, match=r'grpo\.rewards: all weights are 0'):
        rewards.chosen({'judge': 0.0, 'words': 0.0}, {})
