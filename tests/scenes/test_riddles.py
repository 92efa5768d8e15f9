"""riddles.py: what riddles ask for follows from their rules, and the two splits share no pair."""

from itertools import combinations

import numpy as np
import pytest

from rf_jax.runtime.errors import UserError
from rf_jax.scenes import judge, render, riddles, world
from rf_jax.scenes.claims import holds

RUNG = world.RUNGS['aligned']
EVERY = 10**6
THINGS = {
    thing: meaning
    for table in (riddles.NUMBERS, riddles.COLOURS, riddles.SHAPES)
    for meaning, several in table.items()
    for thing in several
}


@pytest.fixture(scope='module')
def sides():
    return {side: riddles.riddle_set(side, RUNG, EVERY) for side in riddles.SIDES}


def things(riddle):
    """The things of a riddle: (number, colour, shape)."""
    parts = riddle.text.split(', ')
    starts = 'as many as ', 'the colour of ', 'the shape of '
    return tuple(part.removeprefix(s) for s in starts for part in parts if part.startswith(s))


def test_every_number_colour_and_shape_has_things_of_its_own():
    assert set(riddles.COLOURS) == set(world.COLOURS) and set(riddles.SHAPES) == set(world.SHAPES)
    tables = riddles.NUMBERS, riddles.COLOURS, riddles.SHAPES
    assert sum(len(things) for table in tables for things in table.values()) == len(THINGS)


def test_the_literal_caption_and_the_claim_say_what_the_things_mean(sides):
    (riddle,) = (
        each for each in sides['seen'] + sides['unseen']
        if set(things(each)) == {'a triangle has corners', 'grass', 'a wheel'}
    )  # fmt: skip
    assert riddle.literal == 'three green circles' and riddle.look == (3, 'green', 'circle')
    for riddle in sides['seen'][:200] + sides['unseen'][:200]:
        assert riddle.look == tuple(THINGS[thing] for thing in things(riddle))
        (group,) = riddle.claim.groups
        assert (group.count, group.colour, group.shape) == riddle.look and riddle.claim.exact


def test_unseen_riddles_have_a_pair_that_training_never_has(sides):
    def pairs(riddle):
        return set(combinations(things(riddle), 2))

    known = set().union(*map(pairs, sides['seen']))
    assert all(pairs(riddle) - known for riddle in sides['unseen'])
    for side in sides.values():  # each thing and each look is in both
        assert {thing for riddle in side for thing in things(riddle)} == set(THINGS)
        assert len({riddle.look for riddle in side}) == 3 * 42
    assert not any(
        world.held_out_look(*riddle.look[1:]) for side in sides.values() for riddle in side
    )


def test_training_has_seen_riddles_alone(sides):
    rng = np.random.default_rng(0)
    asked = {riddles.sample(RUNG, rng).text for _ in range(300)}
    unseen = {frozenset(things(riddle)) for riddle in sides['unseen']}
    assert not any(frozenset(text_things(text)) in unseen for text in asked)


def text_things(text):
    return things(riddles.Riddle(text, '', None))


def test_the_set_is_the_same_for_all_and_keeps_to_the_rung(sides):
    assert riddles.riddle_set('unseen', RUNG, 20) == riddles.riddle_set('unseen', RUNG, 20)
    assert len({r.text for r in riddles.riddle_set('unseen', RUNG, 20)}) == 20
    few = world.Rung(grid=3, radius=0.8, objects=3)
    assert max(r.look[0] for r in riddles.riddle_set('seen', few, EVERY)) == 3
    with pytest.raises(UserError, match='unseen'):
        riddles.riddle_set('new', RUNG, 1)


@pytest.mark.parametrize('rung', ['aligned', 'free'])
def test_the_judge_accepts_the_image_of_a_riddle_and_of_no_other(rung, sides):
    rng = np.random.default_rng(1)
    chosen = sides['unseen'][:4]
    for riddle in chosen:
        found = riddles.scene(riddle, world.RUNGS[rung], rng)
        assert world.allowed(found, held_out=False)
        detected = judge.detect(render.render(found, 48))
        assert [each.look for each in chosen if holds(each.claim, detected)] == [riddle.look]


def test_the_two_forms_differ_in_the_thought_alone():
    literal = 0
    for i in range(60):
        known = world.make(3, i, RUNG)
        direct, think = (
            riddles.converse(known, RUNG, np.random.default_rng(i), think=think)
            for think in (False, True)
        )
        assert direct.scenes == think.scenes and direct.turns[0] == think.turns[0]
        assert direct.turns[1] == ('assistant', (0,))
        assert not think.drafts
        if direct.scenes == (known,):  # of a caption, there is nothing to think about
            literal += 1
            assert think.turns == direct.turns
        else:
            ((role, (thought, image)),) = think.turns[1:]
            assert (role, image) == ('assistant', 0)
            (count, *look) = (len(think.scenes[0].objects), *think.scenes[0].objects[0].look)
            assert thought.startswith(('two', 'three', 'four')[count - 2] + ' ' + look[0])
    assert 8 < literal < 30
