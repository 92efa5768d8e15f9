"""Riddles: prompts that name a number, a colour and a shape by things, so that what to draw follows
from rules, and conversations that draw them at once or write the literal caption first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rf_jax.runtime.errors import choose
from rf_jax.runtime.rng import generator
from rf_jax.scenes import language, world
from rf_jax.scenes.claims import Claim, Group
from rf_jax.scenes.dialogue import Dialogue
from rf_jax.scenes.world import Rung, Scene, held_out_look

# What each thing stands for, by what it stands for.
NUMBERS = {
    2: ('a bicycle has wheels', 'a bird has wings', 'a face has eyes'),
    3: ('a triangle has corners', 'a clock has hands', 'a stool has legs'),
    4: ('a square has corners', 'a dog has legs', 'a year has seasons'),
}
COLOURS = {
    'red': ('blood', 'a tomato', 'a cherry'),
    'green': ('grass', 'a frog', 'a leaf'),
    'blue': ('the sky at noon', 'the sea', 'jeans'),
    'yellow': ('a lemon', 'a banana', 'butter'),
    'purple': ('a plum', 'lavender', 'a grape'),
    'orange': ('a carrot', 'a pumpkin', 'a fox'),
    'cyan': ('a pool', 'turquoise', 'a lagoon'),
    'white': ('snow', 'milk', 'a swan'),
}
SHAPES = {
    'circle': ('a wheel', 'a coin', 'the full moon'),
    'square': ('a box', 'a tile', 'a dice'),
    'triangle': ('a tent', 'a sail', 'a gable'),
    'cross': ('a plus', 'a church tower', 'a grave'),
    'ring': ('a doughnut', 'a tyre', 'a halo'),
    'diamond': ('a kite', 'a rhombus', 'a jewel'),
}
SIDES = ('seen', 'unseen')
_LITERAL = 0.3  # probability of a literal prompt
_APART = 5  # one in 5 pairs of a shape and a number, or a shape and a colour, is unseen
_KIND = 'alike'  # of the scenes

Look = tuple[int, str, str]  # number, colour, shape


@dataclass(frozen=True)
class Riddle:
    """`text` says in things what `literal` says in words; `claim`: what an image must satisfy."""

    text: str
    literal: str
    claim: Claim

    @property
    def look(self) -> Look:
        """Number, colour and shape of the objects."""
        (group,) = self.claim.groups
        return group.count, group.colour, group.shape


def _numbered(table) -> list[tuple[int, str, object]]:
    """(number of the thing, thing, what it stands for)."""
    pairs = [(thing, meaning) for meaning, things in table.items() for thing in things]
    return [(i, *pair) for i, pair in enumerate(pairs)]


def unseen(number: str, colour: str, shape: str) -> bool:
    """Whether two of these things never occur in one riddle of training. Each of them occurs, and
    each look is that of some other riddle there.
    """
    n, c, s = (_PLACES[thing] for thing in (number, colour, shape))
    return (s - n) % _APART == 0 or (s - c) % _APART == 1


def _combinations(most: int) -> dict[str, list[tuple[str, str, str, Look]]]:
    """{side: (thing for the number, the colour, the shape; what they stand for)}, for numbers up to
    `most`. Looks that are held out of training are in neither.
    """
    found: dict[str, list] = {side: [] for side in SIDES}
    for (_, a, number), (_, b, colour), (_, c, shape) in product(*map(_numbered, _TABLES)):
        if number <= most and not held_out_look(colour, shape):
            found[SIDES[unseen(a, b, c)]].append((a, b, c, (number, colour, shape)))
    return found


_TABLES = (NUMBERS, COLOURS, SHAPES)
_PLACES = {thing: i for table in _TABLES for i, thing, _ in _numbered(table)}
_ALL = {most: _combinations(most) for most in NUMBERS}


def make(number: str, colour: str, shape: str, look: Look, swapped: bool) -> Riddle:
    """A riddle of three things; `swapped`: the shape is said last."""
    parts = [f'the shape of {shape}', f'the colour of {colour}', f'as many as {number}']
    group = Group(look[0], look[2], look[1])
    claim = Claim((group,), exact=True)
    return Riddle(', '.join(parts[::-1] if swapped else parts), language.say(claim), claim)


def sample(rung: Rung, rng: np.random.Generator, side: str = 'seen') -> Riddle:
    """A random riddle of a side, with at most as many objects as the rung allows."""
    choices = _ALL[min(rung.objects, max(NUMBERS))][side]
    return make(*choices[int(rng.integers(len(choices)))], swapped=bool(rng.random() < 0.5))


def riddle_set(side: str, rung: Rung, count: int) -> list[Riddle]:
    """`count` different riddles of SIDES, the same for all runs; fewer if there are fewer. Raises
    UserError for any other side.
    """
    choose('side of the riddles', side, dict.fromkeys(SIDES))
    choices = _ALL[min(rung.objects, max(NUMBERS))][side]
    rng = generator('riddles', side)
    order = rng.permutation(len(choices))[:count].tolist()
    return [make(*choices[i], swapped=bool(rng.random() < 0.5)) for i in order]


def scene(riddle: Riddle, rung: Rung, rng: np.random.Generator) -> Scene:
    """A scene that the riddle asks for."""
    count, *look = riddle.look
    while True:
        found = world.arrange(rng, rung, _KIND, [tuple(look)] * count)
        if found is not None:
            return found


def converse(known: Scene, rung: Rung, rng: np.random.Generator, think: bool) -> Dialogue:
    """A riddle and its image, or a caption of the scene `known` and its image; `think`: with the
    literal caption before the image of a riddle, and nothing else different.
    """
    thought: tuple[str, ...] = ()  # of a caption, which is literal already, there is none
    if rng.random() < _LITERAL:
        captions: Sequence = language.captions(known, rung, rng)
        said = captions[int(rng.integers(len(captions)))].text
    else:
        riddle = sample(rung, rng)
        said, known = riddle.text, scene(riddle, rung, rng)
        thought = (riddle.literal,) if think else ()
    answer = (*thought, 0)
    return Dialogue('riddle', (('user', (f'draw {said}',)), ('assistant', answer)), (known,))
