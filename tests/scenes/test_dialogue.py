"""dialogue.py: conversations whose answers follow from the scenes."""

from collections import Counter

import numpy as np
import pytest

from rf_jax.scenes import dialogue, language, world

RUNG = world.RUNGS['aligned']
COUNT = 400


@pytest.fixture(scope='module')
def made():
    scenes = [world.make(5, i, RUNG) for i in range(COUNT + 1)]
    return [
        dialogue.make(scenes[i], scenes[i + 1], RUNG, np.random.default_rng(i))
        for i in range(COUNT)
    ]


def test_all_kinds_at_about_their_rates(made):
    counts = Counter(each.kind for each in made)
    for kind, rate in dialogue.KINDS.items():
        assert abs(counts[kind] / COUNT - rate) < 0.08, counts


def test_user_and_assistant_take_turns(made):
    for each in made:
        assert [role for role, _ in each.turns] == ['user', 'assistant'] * (len(each.turns) // 2)
        numbers = [part for _, parts in each.turns for part in parts if isinstance(part, int)]
        assert sorted(set(numbers)) == list(range(len(each.scenes)))


def test_the_same_seed_says_the_same():
    scenes = [world.make(5, i, RUNG) for i in range(2)]
    one, other = (dialogue.make(*scenes, RUNG, np.random.default_rng(7)) for _ in range(2))
    assert one == other


def test_answers_are_those_of_the_scene(made):
    for each in made:
        if each.kind != 'follow_up':
            continue
        known = {}
        for seed in range(60):  # questions are sampled, so not every one is asked each time
            asked = language.questions(each.scenes[0], np.random.default_rng(seed))
            known |= {question.question: question.answer for question in asked}
        for (_, said), (_, answer) in zip(each.turns[::2], each.turns[1::2]):
            if said[-1] in known:
                assert answer == (known[said[-1]],)


def test_comparisons_are_true():
    rng = np.random.default_rng(0)
    answers = Counter()
    for i in range(200):
        a, b = world.make(6, i, RUNG), world.make(6, i + 1, RUNG)
        question, answer = dialogue.compare(a, b, rng)
        words = question.removeprefix('which image has ').removesuffix('?').split()
        counts = [
            len(s.objects)
            if words[1] == 'objects'
            else sum(language.plural(o.shape) == words[1] for o in s.objects)
            for s in (a, b)
        ]
        if words[0] == 'fewer':
            counts = counts[::-1]
        right = {1: dialogue.FIRST, -1: dialogue.SECOND, 0: dialogue.SAME}
        assert answer == right[np.sign(counts[0] - counts[1])], question
        answers[answer] += 1
    assert min(answers.values()) > 20 and len(answers) == 3
