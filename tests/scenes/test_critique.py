"""critique.py: differences in words, of scenes as of what the judge detects in their images."""

from dataclasses import replace

import numpy as np
import pytest

from rf_jax.scenes import critique, judge, language, render, world
from rf_jax.scenes.claims import Claim, Group, holds
from rf_jax.scenes.judge import Detection

RUNG = world.RUNGS['aligned']


def at(colour, shape, x=0.5, y=0.5):
    return Detection(shape, colour, x, y, 0.1, 1.0)


def exact(*groups, **more):
    return Claim(groups, exact=True, **more)


CIRCLE, RING, TWO = Group(1, 'circle', 'red'), Group(1, 'ring'), Group(2, 'square', 'blue')
TOP = replace(CIRCLE, place='at the top')


@pytest.mark.parametrize(
    ('claim', 'found', 'said'),
    [
        (exact(CIRCLE), [at('red', 'circle')], critique.RIGHT),
        (exact(CIRCLE), [at('blue', 'circle')], 'the blue circle should be red'),
        (exact(CIRCLE), [at('red', 'cross')], 'the red cross should be a circle'),
        (exact(CIRCLE), [at('red', None)], 'the red object should be a circle'),
        (exact(CIRCLE), [], 'there is no red circle'),
        (exact(CIRCLE), [at('red', 'circle')] * 2, 'one red circle too many'),
        (exact(RING), [at('red', 'ring')] * 3, 'two rings too many'),
        (exact(CIRCLE), [at('red', 'circle'), at('blue', 'ring')], 'there should be no blue ring'),
        (exact(TWO), [at('blue', 'square')], 'one blue square is missing'),
        (exact(TWO), [], 'two blue squares are missing'),
        (exact(TOP), [at('red', 'circle', y=0.9)], 'the red circle should be at the top'),
        (exact(TOP), [], 'there is no red circle at the top'),
        (
            exact(RING, CIRCLE, relation='left of'),
            [at('red', 'circle', 0.2), at('cyan', 'ring', 0.8)],
            'the ring should be left of the red circle',
        ),
        (
            exact(RING, CIRCLE, relation='left of'),
            [at('red', 'circle', 0.8), at('cyan', 'ring', 0.2)],
            critique.RIGHT,
        ),
        (
            exact(CIRCLE, RING),
            [at('blue', 'circle'), at('cyan', 'square')],
            'the blue circle should be red, the cyan square should be a ring',
        ),
        (
            exact(CIRCLE, RING),
            [at('blue', 'square')],
            'the blue square should be a ring, there is no red circle',
        ),
        # Not exact: others are allowed, or others of the kind are not.
        (Claim((CIRCLE,)), [at('red', 'circle'), at('blue', 'ring')], critique.RIGHT),
        (Claim((RING,), counted=True), [at('red', 'ring')] * 2, 'one ring too many'),
    ],
)  # fmt: skip
def test_a_difference_is_said(claim, found, said):
    assert critique.write(claim, found) == said


def test_the_best_assignment_is_found():
    """The first object fits both places, the second only one of them."""
    claim = exact(TOP, replace(CIRCLE, place='at the top left'))
    found = [at('red', 'circle', 0.33, 0.1), at('red', 'circle', 0.1, 0.1)]
    assert holds(claim, found)
    for order in (found, found[::-1]):
        assert critique.write(claim, order) == critique.RIGHT


def test_the_critique_is_right_exactly_where_the_claim_holds():
    rng = np.random.default_rng(0)
    for i in range(150):
        one, other = world.make(5, i, RUNG), world.make(5, i + 1, RUNG)
        for caption in language.captions(one, RUNG, rng)[:-1]:
            for scene in (one, other):
                right = critique.write(caption.claim, scene.objects) == critique.RIGHT
                assert right == holds(caption.claim, scene.objects), caption.text


@pytest.mark.parametrize('rung', ['aligned', 'free'])
def test_every_mistake_is_made_and_said_and_the_judge_sees_it(rung):
    rung, seen = world.RUNGS[rung], 0
    for name in critique.MISTAKES:
        for i in range(40):
            rng = np.random.default_rng(i)
            scene = world.make(6, i, rung)
            caption = critique.prompt(scene, rung, rng)
            found = critique.MISTAKES[name](scene, rung, rng)
            if found is None or holds(caption.claim, found.objects):
                continue
            assert critique.write(caption.claim, found.objects) != critique.RIGHT
            if world.allowed(found, held_out=False) and (rung.grid or critique._clear(found)):
                detected = judge.detect(render.render(found, 48))
                said = critique.write(caption.claim, detected)
                assert said == critique.write(caption.claim, found.objects), (name, caption.text)
                seen += 1
                break
        else:
            pytest.fail(f'no scene with {name}')
    assert seen == len(critique.MISTAKES)


def test_conversations_end_where_the_draft_is_right_and_draw_again_where_it_is_wrong():
    wrong = 0
    for i in range(80):
        scene = world.make(7, i, RUNG)
        made = critique.converse(scene, RUNG, np.random.default_rng(i))
        (_, (said,)), (_, (draft, text, *again)) = made.turns
        assert said.startswith('draw ') and draft == 0 and made.drafts == (0,)
        assert made.scenes[-1] == scene
        assert all(world.allowed(each, held_out=False) for each in made.scenes)
        if text == critique.RIGHT:
            assert not again and len(made.scenes) == 1
        else:
            assert again == [1] and made.scenes[0] != scene
            wrong += 1
    assert 20 < wrong < 60
