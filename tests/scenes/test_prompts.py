"""prompts.py: six categories of prompts that occur in training or never do."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator
from rf_jax.scenes import language, world
from rf_jax.scenes.claims import holds
from rf_jax.scenes.prompts import CATEGORIES, prompt_set
from rf_jax.scenes.world import RUNGS

RUNG = RUNGS['aligned']


@pytest.fixture(scope='module')
def training():
    return [world.make(0, i, RUNG) for i in range(2000)]


@pytest.mark.parametrize('side', ['seen', 'held_out'])
def test_categories_are_balanced_with_as_few_repeats_as_possible(side):
    found = prompt_set(side, RUNG)
    assert Counter(p.category for p in found) == dict.fromkeys(CATEGORIES, 50)
    assert found == prompt_set(side, RUNG)
    for category in CATEGORIES:
        texts = Counter(p.text for p in found if p.category == category)
        assert max(texts.values()) - min(texts.values()) <= 1
    assert [p.category for p in prompt_set(side, RUNG, 1)] == list(CATEGORIES)


def test_the_wording_of_each_category():
    forms = {}
    for side in ('seen', 'held_out'):
        for prompt in prompt_set(side, RUNG):
            text = re.sub('|'.join(world.COLOURS), 'C', prompt.text)
            text = re.sub('|'.join(f'{s}(e?s)?' for s in world.SHAPES), 'X', text)
            text = re.sub('left of|right of|above|below', 'R', text)
            text = re.sub('an? C', 'a C', re.sub('two|three|four', 'N', text))
            forms.setdefault((side, prompt.category), set()).add(text)
    corners = {f'a C X at the {r} {c}' for r in ('top', 'bottom') for c in ('left', 'right')}
    assert forms == {
        ('seen', 'single_object'): {'a X'},
        ('seen', 'two_object'): {'a X and a X'},
        ('seen', 'counting'): {'N X'},
        ('seen', 'colors'): {'a C X'},
        ('seen', 'position'): {'a X R a X'},
        ('seen', 'color_attr'): {'a C X and a C X'},
        ('held_out', 'single_object'): corners,
        ('held_out', 'two_object'): {'a C X and a C X'},
        ('held_out', 'counting'): {'N C X'},
        ('held_out', 'colors'): {'a C X'},
        ('held_out', 'position'): {'a X R a X'},
        ('held_out', 'color_attr'): {'a C X and a C X'},
    }


def test_seen_prompts_occur_in_training_images_and_captions(training):
    captions = {
        each.text
        for i, scene in enumerate(training)
        for each in language.captions(scene, RUNG, generator(i))
    }
    for prompt in prompt_set('seen', RUNG):
        if prompt.category != 'color_attr':  # too many to occur in every 2,000
            assert any(holds(prompt.claim, scene.objects) for scene in training), prompt
            assert prompt.text in captions or prompt.category == 'position', prompt


def test_no_training_image_satisfies_a_held_out_prompt(training):
    """So a model that only repeats training images scores 0."""
    for prompt in prompt_set('held_out', RUNG):
        assert not any(holds(prompt.claim, scene.objects) for scene in training), prompt


def test_held_out_prompts_can_be_satisfied():
    shown = [world.make(0, i, RUNG, held_out=True) for i in range(4000)]
    for prompt in prompt_set('held_out', RUNG):
        if prompt.category in ('colors', 'position', 'single_object'):
            assert any(holds(prompt.claim, scene.objects) for scene in shown), prompt


def test_one_object_too_many_is_wrong_for_counting():
    prompt = next(p for p in prompt_set('seen', RUNG) if p.text == 'two circles')
    circle = world.Object('circle', 'red', 'large', 'plain', 0.5, 0.5, 0.1)
    square = replace(circle, shape='square')
    assert holds(prompt.claim, [circle, circle]) and holds(prompt.claim, [circle, circle, square])
    assert not holds(prompt.claim, [circle, circle, circle]) and not holds(prompt.claim, [circle])


def test_counting_asks_for_no_more_than_the_rung_allows():
    def numbers(rung):
        return {p.claim.groups[0].count for p in prompt_set('seen', rung) if p.claim.counted}

    assert numbers(replace(RUNG, objects=3)) == {2, 3}
    assert numbers(RUNG) == numbers(RUNGS['crowded']) == {2, 3, 4}


def test_bad_arguments():
    with pytest.raises(UserError, match='held_out'):
        prompt_set('held-out', RUNG)
    with pytest.raises(UserError, match='at most 1'):
        prompt_set('seen', replace(RUNG, objects=1))
