"""What is wrong with an image of a caption, in words, and conversations in which a draft is judged
and drawn again.

The draft of a conversation is a scene with one mistake, or with none.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from rf_jax.scenes import edits, language
from rf_jax.scenes.claims import NUMBERS, Claim, Group, Placed, holds, related
from rf_jax.scenes.dialogue import Dialogue
from rf_jax.scenes.language import Caption
from rf_jax.scenes.world import COLOURS, SHAPES, Object, Rung, Scene, allowed

RIGHT = 'the image is right'
_MOST = 3  # differences that are named
_FAULTLESS = 0.5  # probability that a draft has no mistake
_CLEAR = 1.5  # least distance of two objects of one colour, in sums of radii, without a grid
_TRIALS = 10


def write(claim: Claim, objects: Sequence[Placed]) -> str:
    """The first few differences between objects and a claim, or RIGHT if it holds.

    Grounds, sizes and textures are not looked at: the judge does not detect them.
    """
    return ', '.join(list(differences(claim, objects))[:_MOST]) or RIGHT


def differences(claim: Claim, objects: Sequence[Placed]) -> Iterator[str]:
    """Each difference in words; none if the claim holds. In order: objects that should be
    otherwise, those that are missing, those too many, the relation.
    """
    groups = [replace(group, size=None, texture=None) for group in claim.groups]
    wanted = [group for group in groups for _ in range(group.count)]
    owners = _owners(wanted, objects)
    open_ = [group for i, group in enumerate(wanted) if i not in owners.values()]
    spare = [each for i, each in enumerate(objects) if i not in owners]
    for group, each, said in _alike(open_, spare):
        open_.remove(group)
        spare.remove(each)
        yield said
    for group, count in Counter(open_).items():
        yield _missing(group, count)
    yield from _too_many(claim, groups, spare)
    if claim.relation and not open_:
        first, second = groups[:2]
        pairs = [(a, b) for a in objects for b in objects if first.fits(a) and second.fits(b)]
        if pairs and not any(related(a, claim.relation, b) for a, b in pairs if a is not b):
            yield f'the {_name(first)} should be {claim.relation} the {_name(second)}'


def _owners(wanted: Sequence[Group], objects: Sequence[Placed]) -> dict[int, int]:
    """{number of an object: of the wanted object that it is}, as many as possible."""
    owners: dict[int, int] = {}

    def find(number: int, tried: set[int]) -> bool:
        for i, each in enumerate(objects):
            if i not in tried and wanted[number].fits(each):
                tried.add(i)
                if i not in owners or find(owners[i], tried):
                    owners[i] = number
                    return True
        return False

    for number in range(len(wanted)):
        find(number, set())
    return owners


def _alike(wanted: Sequence[Group], objects: Sequence[Placed]):
    """(wanted, object, what should be otherwise) of pairs that differ in one thing."""
    wanted, objects = list(wanted), list(objects)
    for name, open_ in (('place', ''), ('colour', None), ('shape', None)):
        for group in list(wanted):
            loose = replace(group, **{name: open_})
            near = next((each for each in objects if loose.fits(each)), None)
            if near is None:
                continue
            wanted.remove(group)
            objects.remove(near)
            should = f'a {group.shape}' if name == 'shape' else getattr(group, name)
            yield group, near, f'the {_look(near)} should be {should}'


def _missing(group: Group, count: int) -> str:
    if count == group.count == 1:
        return f'there is no {_name(group)}'
    verb = 'is' if count == 1 else 'are'
    return f'{NUMBERS[count]} {_name(group, count)} {verb} missing'


def _too_many(claim: Claim, groups: Sequence[Group], spare: Sequence[Placed]) -> Iterator[str]:
    """Of objects that the claim does not allow."""
    found: Counter[Group | str] = Counter()
    for each in spare:
        looks = (Group(1, group.shape, group.colour) for group in groups)
        group = next((look for look in looks if look.fits(each)), None)
        if claim.exact or (claim.counted and group):
            found[group or _look(each)] += 1
    for what, count in found.items():
        if isinstance(what, Group):
            yield f'{NUMBERS[min(count, len(NUMBERS) - 1)]} {_name(what, count)} too many'
        else:
            yield f'there should be no {what}'


def _look(each: Placed) -> str:
    return f'{each.colour} {each.shape or "object"}'


def _name(group: Group, count: int = 1) -> str:
    """'red circle at the top left', 'red circles'."""
    group = replace(group, count=min(count, 2), place=group.place if count == 1 else '')
    return language.say_group(group).partition(' ')[2]


def prompt(scene: Scene, rung: Rung, rng: np.random.Generator) -> Caption:
    """One of the short captions of a scene, of which the judge can check all."""
    short = language.captions(scene, rung, rng)[:-1]
    return short[int(rng.integers(len(short)))]


def converse(scene: Scene, rung: Rung, rng: np.random.Generator) -> Dialogue:
    """A prompt, a draft, what is wrong with it, and the scene as it should be, if anything is."""
    caption = prompt(scene, rung, rng)
    faultless = rng.random() < _FAULTLESS
    draft = None if faultless else spoiled(scene, caption.claim, rung, rng)
    asked = ('user', (f'draw {caption.text}',))
    if draft is None:
        answer = ('assistant', (0, RIGHT))
        return Dialogue('critique', (asked, answer), (scene,), drafts=(0,))
    answer = ('assistant', (0, write(caption.claim, draft.objects), 1))
    return Dialogue('critique', (asked, answer), (draft, scene), drafts=(0,))


def spoiled(scene: Scene, claim: Claim, rung: Rung, rng: np.random.Generator) -> Scene | None:
    """The scene with one random mistake, so that the claim does not hold; it stays in the training
    split. None if none was found.
    """
    for name in rng.permutation(list(MISTAKES)):
        for _ in range(_TRIALS):
            found = MISTAKES[str(name)](scene, rung, rng)
            if found is None or holds(claim, found.objects):
                continue
            if allowed(found, held_out=False) and (rung.grid or _clear(found)):
                return found
    return None


def _clear(scene: Scene) -> bool:
    """Whether objects of one colour are so far apart that the judge can tell them apart."""
    return all(
        math.hypot(a.x - b.x, a.y - b.y) >= _CLEAR * (a.radius + b.radius)
        for a, b in combinations(scene.objects, 2)
        if a.colour == b.colour
    )


def _colour(scene: Scene, rung: Rung, rng) -> Scene:
    i = int(rng.integers(len(scene.objects)))
    return _with(scene, i, colour=str(rng.choice(list(COLOURS))))


def _shape(scene: Scene, rung: Rung, rng) -> Scene:
    i = int(rng.integers(len(scene.objects)))
    return _with(scene, i, shape=str(rng.choice(SHAPES)))


def _swapped(scene: Scene, rung: Rung, rng) -> Scene | None:
    """Two objects exchange their places."""
    if len(scene.objects) < 2:
        return None
    i, j = rng.permutation(len(scene.objects))[:2].tolist()
    a, b = (
        {name: getattr(scene.objects[k], name) for name in ('x', 'y', 'size', 'radius')}
        for k in (i, j)
    )
    return _with(_with(scene, i, **b), j, **a)


def _dropped(scene: Scene, rung: Rung, rng) -> Scene | None:
    if len(scene.objects) < 2:
        return None
    i = int(rng.integers(len(scene.objects)))
    return replace(scene, objects=scene.objects[:i] + scene.objects[i + 1 :])


def _more(scene: Scene, rung: Rung, rng) -> Scene | None:
    """One more object, half of the time like one that is there."""
    edit = edits.add(scene, rung, rng)
    if edit is None or rng.random() < 0.5:
        return None if edit is None else edit.after
    like: Object = scene.objects[int(rng.integers(len(scene.objects)))]
    return _with(edit.after, len(scene.objects), colour=like.colour, shape=like.shape)


def _with(scene: Scene, number: int, **changes) -> Scene:
    objects = list(scene.objects)
    objects[number] = replace(objects[number], **changes)
    return replace(scene, objects=tuple(objects))


# What a draft has wrong.
MISTAKES = {
    'colour': _colour, 'shape': _shape, 'places': _swapped, 'missing': _dropped, 'more': _more
}  # fmt: skip
