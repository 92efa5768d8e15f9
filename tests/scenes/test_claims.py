"""claims.py: which objects satisfy a claim and which do not."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest

from rf_jax.scenes import claims
from rf_jax.scenes.claims import Claim, Group, holds, related


@dataclass(frozen=True)
class Detection:
    """An object as the judge detects it: no size, no texture."""

    shape: str
    colour: str = 'red'
    x: float = 0.5
    y: float = 0.5


RED, BLUE = Detection('circle', 'red', 0.2, 0.5), Detection('circle', 'blue', 0.8, 0.5)
SQUARE = Detection('square', 'green', 0.5, 0.9)


def test_counts_are_minimums_unless_counted_or_exact():
    two = (Group(2, 'circle'),)
    assert not holds(Claim(two), [RED, SQUARE])
    assert holds(Claim(two), [RED, SQUARE, BLUE])
    assert holds(Claim(two), [RED, BLUE, RED])
    assert holds(Claim(two, counted=True), [RED, SQUARE, BLUE])  # other objects are allowed
    assert not holds(Claim(two, counted=True), [RED, BLUE, RED])  # but not a third circle
    assert not holds(Claim(two, counted=True), [RED])
    assert holds(Claim(two, exact=True), [RED, BLUE])
    assert not holds(Claim(two, exact=True), [RED, BLUE, SQUARE])
    assert not holds(Claim(two, exact=True), [RED, BLUE, RED])


def test_counted_considers_the_named_colour_only():
    two_red = Claim((Group(2, 'circle', 'red'),), counted=True)
    assert holds(two_red, [RED, RED, BLUE]) and not holds(two_red, [RED, BLUE])
    assert not holds(two_red, [RED, RED, RED])


def test_each_object_counts_for_one_group():
    circle_and_red = (Group(1, 'circle'), Group(1, None, 'red'))
    for order in permutations([RED, BLUE]):  # blue matches the circle, red the red one
        assert holds(Claim(circle_and_red, exact=True), order)
    assert not holds(Claim(circle_and_red), [RED])
    assert not holds(Claim(circle_and_red), [RED, SQUARE])
    two_groups = Claim((Group(1, 'circle', 'red'), Group(1, 'circle', 'red')))
    assert holds(two_groups, [RED, RED]) and not holds(two_groups, [RED, BLUE])


def test_an_attribute_left_open_matches_anything():
    assert holds(Claim((Group(1, None),)), [SQUARE])
    assert holds(Claim((Group(1, None, 'green'),)), [RED, SQUARE])
    assert not holds(Claim((Group(1, None, 'white'),)), [RED, SQUARE])


def test_size_and_texture_are_checked_where_objects_have_them():
    @dataclass(frozen=True)
    class Known(Detection):
        size: str = 'small'
        texture: str = 'plain'

    small = Group(1, 'circle', size='small', texture='plain')
    assert holds(Claim((small,)), [Known('circle')])
    assert not holds(Claim((small,)), [Known('circle', size='large')])
    assert not holds(Claim((small,)), [Known('circle', texture='checked')])


def test_the_ground_is_checked_if_both_sides_have_it():
    dark = Claim((Group(1, 'circle'),), ground='dark')
    assert holds(dark, [RED], 'dark') and holds(dark, [RED]) and not holds(dark, [RED], 'grey')
    assert holds(Claim((Group(1, 'circle'),)), [RED], 'grey')


def test_a_relation_is_between_the_groups_it_names():
    left = Claim((Group(1, 'circle', 'red'), Group(1, 'circle', 'blue')), 'left of')
    assert holds(left, [RED, BLUE]) and holds(left, [BLUE, SQUARE, RED])
    right = Claim(left.groups, 'right of')
    assert not holds(right, [RED, BLUE])
    # Some circle is always left of some other.
    assert holds(Claim((Group(1, 'circle'), Group(1, 'circle')), 'right of'), [RED, BLUE])
    assert not holds(Claim((Group(1, 'circle'), Group(1, 'circle')), 'left of'), [RED, RED])


@pytest.mark.parametrize('degrees', range(0, 360, 10))
def test_relations_hold_within_60_degrees(degrees):
    """As in GenEval: a component of the unit vector of at least one half."""
    angle = np.radians(degrees)
    a, b = (
        Detection('circle', x=0.5 + 0.3 * np.cos(angle), y=0.5 - 0.3 * np.sin(angle)),
        Detection('ring'),
    )
    towards = {'right of': 0, 'above': 90, 'left of': 180, 'below': 270}
    for relation, direction in towards.items():
        off = abs((degrees - direction + 180) % 360 - 180)
        if off != 60:
            assert related(a, relation, b) == (off < 60)


def test_relations_need_a_margin():
    assert not related(Detection('circle', x=0.45), 'left of', Detection('ring'))
    assert related(Detection('circle', x=0.43), 'left of', Detection('ring'))


def test_places_are_clear_only_away_from_borders():
    assert claims.place_of(Detection('ring', x=0.5, y=0.5)) == 'in the middle'
    assert claims.place_of(Detection('ring', x=0.1, y=0.9)) == 'at the bottom left'
    assert claims.place_of(Detection('ring', x=0.9, y=0.5)) == 'on the right'
    assert claims.place_of(Detection('ring', x=0.34, y=0.5)) == ''
    for x, y in np.random.default_rng(0).uniform(0, 1, (500, 2)):
        each = Detection('ring', x=x, y=y)
        fitting = [p for p in claims.PLACES if Group(1, 'ring', place=p).fits(each)]
        clear = claims.place_of(each)
        assert fitting == [clear] if clear else fitting  # a clear place is the only matching one
