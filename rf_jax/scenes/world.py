"""Procedural scenes: 1 to 6 objects on a ground, each scene a function of (seed, index) alone.

Coordinates are fractions of the image's side: x to the right, y downwards, both in [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rf_jax.runtime.rng import generator
from rf_jax.scenes.claims import related

SHAPES = ('circle', 'square', 'triangle', 'cross', 'ring', 'diamond')
COLOURS = {
    'red': (220, 40, 40),
    'green': (40, 160, 60),
    'blue': (50, 80, 230),
    'yellow': (240, 210, 40),
    'purple': (150, 50, 200),
    'orange': (245, 130, 30),
    'cyan': (60, 205, 225),
    'white': (245, 245, 245),
}
SIZES = {'large': 1.0, 'small': 0.68}  # fractions of the rung's radius
TEXTURES = ('plain', 'striped', 'checked')
GROUNDS = {'dark': 25, 'grey': 85}
RELATIONS = ('left of', 'right of', 'above', 'below')
INVERSE = dict(zip(RELATIONS, ('right of', 'left of', 'below', 'above')))
# Kinds of scenes and their probabilities: one object, two, several alike, a mixture.
KINDS = {'single': 0.2, 'pair': 0.4, 'alike': 0.25, 'mixed': 0.15}
COUNTS = {'single': (1, 1), 'pair': (2, 2), 'alike': (2, 4), 'mixed': (3, 6)}  # fewest, most
HELD_OUT = 8  # one in 8 (colour, shape) pairs and one in 8 relations are held out
_APART = 0.12  # least distance along an axis for a relation to be stated
_SLANT = 0.51  # largest distance along the other axis, as a fraction of that
_GAP = 1.31  # least distance of two objects, in sums of their radii: corners do not touch
_CLEAR = 1.5  # the same for two of one colour, so that their borders are visible
_TRIALS = 100


@dataclass(frozen=True)
class Object:
    """`x`, `y` centre and `radius` as fractions of the image's side."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float

    @property
    def look(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """`objects` from the farthest to the nearest; `clutter`: 0 for a flat ground, else its seed."""

    objects: tuple[Object, ...]
    ground: str
    clutter: int
    kind: str


@dataclass(frozen=True)
class Rung:
    """A level of difficulty.

    `grid`: cells per side, with objects at the centres of cells; 0: anywhere. `radius` of a large
    object as a fraction of the side (of half a cell if there is a grid). At most `objects` objects.
    """

    grid: int
    radius: float
    objects: int
    sizes: tuple[str, ...] = ('large',)
    textures: tuple[str, ...] = ('plain',)
    clutter: bool = False
    # Fraction of the least distance by which objects of different colours may come closer.
    overlap: float = 0.0


RUNGS = {
    'aligned': Rung(grid=3, radius=0.86, objects=4),
    'free': Rung(grid=0, radius=0.14, objects=4, sizes=tuple(SIZES)),
    'crowded': Rung(
        grid=0,
        radius=0.15,
        objects=6,
        sizes=tuple(SIZES),
        textures=TEXTURES,
        clutter=True,
        overlap=0.25,
    ),
}


def held_out_look(colour: str, shape: str) -> bool:
    """Whether this (colour, shape) pair is held out of training; every shape is in one of them."""
    place = list(COLOURS).index(colour) - SHAPES.index(shape)
    return place % HELD_OUT == 0


def held_out_relation(first: str, relation: str, second: str) -> bool:
    """Whether these shapes in this relation are held out, and with them the inverse relation.

    Every shape is in two or three held-out relations, every relation in four. Two objects of one
    shape are never held out.
    """
    if relation in ('right of', 'below'):
        first, relation, second = second, INVERSE[relation], first
    number = SHAPES.index(first) + 3 * SHAPES.index(second) + 3 * (relation == 'above') + 3
    return first != second and number % HELD_OUT == 0


def relations(a: Object, b: Object) -> list[str]:
    """The relations of a to b that are stated: only a clear one, so that no other holds."""
    dx, dy = abs(a.x - b.x), abs(a.y - b.y)
    if max(dx, dy) < _APART or min(dx, dy) > _SLANT * max(dx, dy):
        return []
    return [relation for relation in RELATIONS if related(a, relation, b)]


def allowed(scene: Scene, held_out: bool) -> bool:
    """Whether the scene belongs to this split.

    The training split has no held-out look, and no two shapes in a held-out relation, stated or
    not. The held-out split has such a look, or two objects clearly in such a relation. Scenes in
    between belong to neither.
    """
    look = any(held_out_look(*each.look) for each in scene.objects)
    pairs = list(combinations(scene.objects, 2))
    if held_out:
        return look or (len(pairs) == 1 and _held_out_pair(*pairs[0], relations(*pairs[0])))
    return not look and not any(
        _held_out_pair(a, b, [r for r in RELATIONS if related(a, r, b)]) for a, b in pairs
    )


def _held_out_pair(a: Object, b: Object, said: Sequence[str]) -> bool:
    return any(held_out_relation(a.shape, relation, b.shape) for relation in said)


def make(seed: int, index: int, rung: Rung, held_out: bool = False) -> Scene:
    """Scene `index` of a seed; `held_out`: with a look or relation that training never has."""
    rng = generator(seed, 'scene', held_out, index)
    kinds = [kind for kind in KINDS if COUNTS[kind][0] <= rung.objects]
    # Sampled once, so that kinds that are often rejected below keep their probability.
    kind = _pick(rng, kinds, [KINDS[kind] for kind in kinds])
    least, most = COUNTS[kind]
    count = int(rng.integers(least, min(most, rung.objects) + 1))
    while True:
        scene = arrange(rng, rung, kind, _looks(rng, kind, count))
        if scene is not None and allowed(scene, held_out):
            return scene


def arrange(
    rng: np.random.Generator, rung: Rung, kind: str, looks: Sequence[tuple[str, str]]
) -> Scene | None:
    """A scene of objects of these (colour, shape) pairs; None if there was no room."""
    sizes = [_pick(rng, rung.sizes) for _ in looks]
    places = _places(rng, rung, looks, [_radius(rung, size) for size in sizes])
    if places is None:
        return None
    texture = _pick(rng, rung.textures)
    objects = [
        Object(shape, colour, size, texture if kind == 'alike' else _pick(rng, rung.textures), *at)
        for (colour, shape), size, at in zip(looks, sizes, places)
    ]
    clutter = int(rng.integers(1, 2**31)) if rung.clutter else 0
    return Scene(tuple(objects), _pick(rng, tuple(GROUNDS)), clutter, kind)


def _looks(rng: np.random.Generator, kind: str, count: int) -> list[tuple[str, str]]:
    """(colour, shape) of each object: all alike, a pair of different shapes, or any."""
    colours, shapes = tuple(COLOURS), SHAPES
    if kind == 'alike':
        return [(_pick(rng, colours), _pick(rng, shapes))] * count
    if kind == 'pair':
        both = rng.permutation(len(shapes))[:2]
        return [(_pick(rng, colours), shapes[i]) for i in both]
    return [(_pick(rng, colours), _pick(rng, shapes)) for _ in range(count)]


def _radius(rung: Rung, size: str) -> float:
    return rung.radius * SIZES[size] * (0.5 / rung.grid if rung.grid else 1.0)


def _places(
    rng: np.random.Generator,
    rung: Rung,
    looks: Sequence[tuple[str, str]],
    radii: Sequence[float],
) -> list[tuple[float, float, float]] | None:
    """(x, y, radius) of each object, or None if there is no room."""
    if rung.grid:
        cells = rng.permutation(rung.grid**2)[: len(radii)]
        return [
            ((c % rung.grid + 0.5) / rung.grid, (c // rung.grid + 0.5) / rung.grid, r)
            for c, r in zip(cells.tolist(), radii)
        ]
    found: list[tuple[float, float, float]] = []
    for (colour, _), radius in zip(looks, radii):
        near = _GAP * (1 - rung.overlap)
        gaps = [_CLEAR if colour == other else near for other, _ in looks]
        for _ in range(_TRIALS):
            x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2).tolist()
            if all(
                math.hypot(x - u, y - v) >= gap * (radius + r)
                for gap, (u, v, r) in zip(gaps, found)
            ):
                found.append((x, y, radius))
                break
        else:
            return None
    return found


def _pick(rng: np.random.Generator, choices: Sequence, weights: Sequence[float] = ()):
    if not weights:
        return choices[int(rng.integers(len(choices)))]
    return choices[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights)))]
