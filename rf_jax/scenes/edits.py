"""Changes of a scene that a user may ask for, and whether an image shows them and nothing else."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rf_jax.scenes import language
from rf_jax.scenes.claims import PLACES, Group, place_of
from rf_jax.scenes.judge import Detection
from rf_jax.scenes.world import COLOURS, SHAPES, Object, Rung, Scene, allowed

KINDS = ('recolour', 'move', 'add', 'remove')
_NEAR = 0.1  # how far, as a fraction of the side, an untouched object may seem to have moved
_GAP = 1.5  # least distance of a moved or added object from others, in sums of radii
_TRIALS = 20


@dataclass(frozen=True)
class Edit:
    """`request` asks for `before` to become `after`, which differ in one object.

    `old` is that object in `before`, None if it is added; `new` in `after`, None if it is removed.
    `place`: where the request wants it, '' for anywhere.
    """

    kind: str
    request: str
    before: Scene
    after: Scene
    old: Object | None
    new: Object | None
    place: str = ''


@dataclass(frozen=True)
class Verdict:
    """`changed`: the change asked for is there. `kept`: everything else is as it was."""

    changed: bool
    kept: bool


def sample(scene: Scene, rung: Rung, rng: np.random.Generator) -> Edit | None:
    """A random edit of the scene that stays in the training split, or None if none was found."""
    for kind in rng.permutation(KINDS):
        for _ in range(_TRIALS):
            edit = _MAKE[str(kind)](scene, rung, rng)
            if edit is not None and allowed(edit.after, held_out=False):
                return edit
    return None


def judge(edit: Edit, found: Sequence[Detection]) -> Verdict:
    """Compares the objects detected in an edited image with those of the scene before."""
    left = list(found)
    rest = [each for each in edit.before.objects if each is not edit.old]
    kept = True
    for each in rest:
        same = [d for d in left if d.shape == each.shape and d.colour == each.colour]
        near = min(same, key=lambda d: _distance(d, each), default=None)
        if near is None or _distance(near, each) > _NEAR:
            kept = False
        else:
            left.remove(near)
    if edit.new is None:
        changed = not any(_is(d, edit.old) for d in left)
        return Verdict(changed, kept and len(left) <= (not changed))
    wanted = Group(1, edit.new.shape, edit.new.colour, edit.place)
    stays = edit.kind == 'recolour'
    changed = any(
        wanted.fits(d) and (not stays or _distance(d, edit.new) <= _NEAR) for d in left
    ) and not (edit.old is not None and any(_is(d, edit.old) for d in left))
    return Verdict(changed, kept and len(left) <= 1)


def _is(each: Detection, thing: Object) -> bool:
    same = each.shape == thing.shape and each.colour == thing.colour
    return same and _distance(each, thing) <= _NEAR


def _distance(a, b) -> float:
    return math.hypot(a.x - b.x, a.y - b.y)


def _recolour(scene: Scene, rung: Rung, rng) -> Edit | None:
    old, name = _single(scene, rng)
    if old is None:
        return None
    colour = str(rng.choice([c for c in COLOURS if c != old.colour]))
    new = replace(old, colour=colour)
    if any(
        _close(new, each, 1 if rung.grid else _GAP)
        for each in _others(scene, old)
        if each.colour == colour
    ):
        return None
    return _edit('recolour', f'make the {name} {colour}', scene, old, new)


def _move(scene: Scene, rung: Rung, rng) -> Edit | None:
    old, name = _single(scene, rng)
    if old is None:
        return None
    place = str(rng.choice([place for place in PLACES if place != place_of(old)]))
    at = _free_spot(scene, rung, rng, place, old.radius, without=old)
    if at is None:
        return None
    new = replace(old, x=at[0], y=at[1])
    if _distance(new, old) <= 1.5 * _NEAR:  # the judge could not tell
        return None
    return _edit('move', f'move the {name} {_towards(place)}', scene, old, new, place)


def add(scene: Scene, rung: Rung, rng: np.random.Generator) -> Edit | None:
    """One more object of any look; None if there is no room."""
    if len(scene.objects) >= rung.objects:
        return None
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    place = str(rng.choice(list(PLACES)))
    radius = max(each.radius for each in scene.objects)
    at = _free_spot(scene, rung, rng, place, radius)
    if at is None:
        return None
    model = next(each for each in scene.objects if each.radius == radius)
    new = replace(model, colour=colour, shape=shape, x=at[0], y=at[1])
    said = language.say_group(Group(1, shape, colour, place))
    return _edit('add', f'add {said}', scene, None, new, place)


def _remove(scene: Scene, rung: Rung, rng) -> Edit | None:
    if len(scene.objects) < 2:
        return None
    old, name = _single(scene, rng)
    return None if old is None else _edit('remove', f'remove the {name}', scene, old, None)


_MAKE = dict(zip(KINDS, (_recolour, _move, add, _remove)))


def _edit(kind: str, request: str, scene: Scene, old, new, place: str = '') -> Edit:
    objects = [new if each is old else each for each in scene.objects]
    if old is None:
        objects.append(new)
    after = replace(scene, objects=tuple(each for each in objects if each is not None))
    return Edit(kind, request, scene, after, old, new, place)


def _single(scene: Scene, rng) -> tuple[Object | None, str]:
    """An object that a name singles out, and the name: its shape, or colour and shape."""
    named = list(_names(scene))
    return named[int(rng.integers(len(named)))] if named else (None, '')


def _names(scene: Scene) -> Iterator[tuple[Object, str]]:
    for each in scene.objects:
        if sum(o.shape == each.shape for o in scene.objects) == 1:
            yield each, each.shape
        if sum(o.look == each.look for o in scene.objects) == 1:
            yield each, f'{each.colour} {each.shape}'


def _others(scene: Scene, thing: Object | None) -> list[Object]:
    return [each for each in scene.objects if each is not thing]


def _close(a: Object, b: Object, gap: float) -> bool:
    return _distance(a, b) < gap * (a.radius + b.radius)


def _free_spot(
    scene: Scene, rung: Rung, rng, place: str, radius: float, without: Object | None = None
) -> tuple[float, float] | None:
    """(x, y) in that third of the image, away from all other objects; None if it is taken."""
    row, column = PLACES[place]
    if rung.grid:
        at = [(i + 0.5) / rung.grid for i in range(rung.grid)]
        spots = [(x, y) for y in at if int(y * 3) == row for x in at if int(x * 3) == column]
    else:
        low, high = radius + 0.02, 0.98 - radius
        x, y = ((t + rng.uniform(0.2, 0.8)) / 3 for t in (column, row))
        spots = [(min(max(float(x), low), high), min(max(float(y), low), high))]
    gap = 1.0 if rung.grid else _GAP
    free = [
        (x, y)
        for x, y in spots
        if all(
            math.hypot(x - o.x, y - o.y) >= gap * (radius + o.radius)
            for o in _others(scene, without)
        )
    ]
    return free[int(rng.integers(len(free)))] if free else None


def _towards(place: str) -> str:
    """'at the top left' -> 'to the top left', 'in the middle' -> 'to the middle'."""
    return f'to {place.split(" ", 1)[1]}'
