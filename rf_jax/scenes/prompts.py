"""Prompts in GenEval's six categories (Ghosh et al. 2023), seen in training or held out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product

from rf_jax.runtime.errors import choose, require
from rf_jax.runtime.rng import generator
from rf_jax.scenes.claims import Claim, Group
from rf_jax.scenes.language import say
from rf_jax.scenes.world import COLOURS, RELATIONS, SHAPES, Rung, held_out_look, held_out_relation

CATEGORIES = ('single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr')
_MOST = 4  # largest count in counting prompts
_CORNERS = tuple(
    f'at the {row} {column}' for row in ('top', 'bottom') for column in ('left', 'right')
)


@dataclass(frozen=True)
class Prompt:
    """A category, the prompt, and the claim that an image must satisfy (`claims.holds`)."""

    category: str
    text: str
    claim: Claim


def prompt_set(side: str, rung: Rung, count: int = 50) -> list[Prompt]:
    """`count` prompts of each category in turn, repeated if fewer exist.

    `side` 'seen' uses looks and relations that occur in training:

    - single_object: a circle
    - two_object: a circle and a square
    - counting: three circles; 2 to 4, at most as many as the rung allows
    - colors: a red circle
    - position: a circle left of a square
    - color_attr: a red circle and a blue square

    'held_out' uses a held-out relation in position, and held-out looks elsewhere: alone in colors,
    one of the two in color_attr. Shapes alone cannot be held out, so single_object puts a held-out
    look into a corner, two_object asks for two of them, counting for several.

    Raises UserError for any other side, and for a rung of fewer than two objects.
    """
    sides = {'seen': _seen, 'held_out': _held_out}
    claims = choose('side of the prompt set', side, sides)
    require(
        rung.objects > 1,
        f'prompts ask for two or more objects, but scenes have at most {rung.objects}: '
        'raise objects in data.sources',
    )
    numbers = range(2, min(_MOST, rung.objects) + 1)
    found = []
    for category, said in zip(CATEGORIES, claims(numbers)):
        distinct = [Prompt(category, say(claim), claim) for claim in said]
        # A fixed order: all runs are scored on the same prompts.
        order = generator(0, 'prompts', side, category).permutation(len(distinct)).tolist()
        found += [distinct[order[i % len(order)]] for i in range(count)]
    return found


def _seen(numbers: Iterable[int]) -> Iterator[list[Claim]]:
    """The claims of each category."""
    yield [Claim((Group(1, shape),)) for shape in SHAPES]
    yield [Claim((Group(1, a), Group(1, b))) for a, b in permutations(SHAPES, 2)]
    yield [Claim((Group(n, s),), counted=True) for n, s in product(numbers, SHAPES)]
    yield [Claim((_look(*look),)) for look in _looks(False)]
    yield _positions(False)
    yield _pairs(_looks(False), _looks(False))


def _held_out(numbers: Iterable[int]) -> Iterator[list[Claim]]:
    held, shown = _looks(True), _looks(False)
    yield [Claim((_look(*look, place),)) for look, place in product(held, _CORNERS)]
    yield _pairs(held, held)
    yield [Claim((Group(n, s, c),), counted=True) for n, (c, s) in product(numbers, held)]
    yield [Claim((_look(*look),)) for look in held]
    yield _positions(True)
    yield _pairs(held, shown) + _pairs(shown, held)


def _look(colour: str, shape: str, place: str = '') -> Group:
    return Group(1, shape, colour, place)


def _looks(held_out: bool) -> list[tuple[str, str]]:
    return [look for look in product(COLOURS, SHAPES) if held_out_look(*look) == held_out]


def _pairs(firsts, seconds) -> list[Claim]:
    """Pairs of looks with different colours and shapes."""
    return [
        Claim((_look(*a), _look(*b)))
        for a, b in product(firsts, seconds)
        if a[0] != b[0] and a[1] != b[1]
    ]


def _positions(held_out: bool) -> list[Claim]:
    return [
        Claim((Group(1, a), Group(1, b)), relation)
        for a, b in permutations(SHAPES, 2)
        for relation in RELATIONS
        if held_out_relation(a, relation, b) == held_out
    ]
