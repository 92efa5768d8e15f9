"""From scenes to text: exact captions, each with its claim, and questions with one answer."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rf_jax.scenes.claims import NUMBERS, Claim, Group, place_of
from rf_jax.scenes.world import (
    COLOURS,
    INVERSE,
    SHAPES,
    Object,
    Rung,
    Scene,
    held_out_look,
    held_out_relation,
    relations,
)

_SHORT = 16  # largest number of words of a short caption


@dataclass(frozen=True)
class Caption:
    """A text, and what it claims."""

    text: str
    claim: Claim


@dataclass(frozen=True)
class Question:
    """`kind`: exists | count | colour | shape | where | compare | same."""

    kind: str
    question: str
    answer: str


def say(claim: Claim) -> str:
    """The wording of a claim: 'two red circles and a blue square', 'a ring left of a cross'."""
    named = [say_group(group) for group in claim.groups]
    text = f'{named[0]} {claim.relation} {named[1]}' if claim.relation else listed(named)
    return f'{text} on a {claim.ground} ground' if claim.ground else text


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return ' and '.join(part for part in (', '.join(parts[:-1]), parts[-1]) if part)


def captions(scene: Scene, rung: Rung, rng: np.random.Generator) -> list[Caption]:
    """The captions of a scene, all exact: short ones first, the long one last.

    Short ones have at most 16 words: with colours, without, with places, and for two objects their
    relation. The long one names size, texture, colour and place of each object, and the ground.
    Size and texture are named if the rung varies them, a place if it is clear.
    """
    objects = scene.objects
    claims = [_claim(_alike(objects, 'colour')), _claim(_alike(objects))]
    if len(objects) == 2 and objects[0].shape != objects[1].shape:
        claims += _related(*(objects[i] for i in rng.permutation(2)))
    placed = [_placed(each, scene) for each in objects]
    if any(group.place for group in placed):
        claims.append(_claim(placed))
    found = [Caption(say(claim), claim) for claim in claims]
    short = [caption for caption in found if len(caption.text.split()) <= _SHORT]
    groups = [_varied(placed[i], objects[i], rung) for i in rng.permutation(len(objects))]
    text, full = say(_claim(groups)), _claim(groups, ground=scene.ground)
    ground_first = f'on a {scene.ground} ground, {text}'
    return [*short, Caption(ground_first if rng.random() < 0.5 else say(full), full)]


def _related(a: Object, b: Object) -> list[Claim]:
    """The relation of a to b with colours, and of b to a without."""
    coloured = [Group(1, each.shape, each.colour) for each in (a, b)]
    plain = [Group(1, each.shape) for each in (b, a)]
    return [
        claim
        for said in relations(a, b)
        for claim in (_claim(coloured, relation=said), _claim(plain, relation=INVERSE[said]))
    ]


def _claim(groups: Iterable[Group], **more) -> Claim:
    return Claim(tuple(groups), exact=True, **more)


def _alike(objects: Sequence[Object], colour: str = '') -> list[Group]:
    """Objects grouped by shape, and by colour if it is named, with counts."""
    looks = Counter((o.shape, o.colour if colour else None) for o in objects)
    return [Group(count, *look) for look, count in looks.items()]


def _placed(each: Object, scene: Scene) -> Group:
    """One object, with its place if all objects of the same look have a clear one: otherwise an
    object of that look might be in another place too.
    """
    clear = all(place_of(o) for o in scene.objects if o.look == each.look)
    return Group(1, each.shape, each.colour, place_of(each) if clear else '')


def _varied(group: Group, each: Object, rung: Rung) -> Group:
    """The group, with the attributes that the rung varies."""
    return replace(
        group,
        size=each.size if len(rung.sizes) > 1 else None,
        texture=each.texture if len(rung.textures) > 1 else None,
    )


def plural(shape: str) -> str:
    """'circles', 'crosses'."""
    return shape + ('es' if shape.endswith('s') else 's')


def say_group(group: Group) -> str:
    """The wording of one group: 'two red circles', 'a ring at the top left'."""
    shape = group.shape or 'object'
    if group.count != 1:
        shape = plural(shape)
    words = ' '.join(filter(None, (group.size, group.texture, group.colour, shape, group.place)))
    if group.count != 1:
        return f'{NUMBERS[group.count]} {words}'
    return f'{"an" if words[0] in "aeiou" else "a"} {words}'


def questions(scene: Scene, rng: np.random.Generator, held_out: bool = False) -> list[Question]:
    """Questions that have exactly one answer.

    Yes and no are equally frequent except for `same`. Unless `held_out`, held-out looks and
    relations are not asked about: 'no' would always be right.
    """
    return [
        *_exists(scene, rng, held_out),
        *_count(scene, rng),
        *_colour_and_shape(scene),
        *_where(scene, rng),
        *_relation(scene, rng, held_out),
        *_compare(scene, rng),
        *_same(scene),
    ]


def _both(kind: str, question: str, right: str, wrong: str) -> list[Question]:
    return [
        Question(kind, question.format(right), 'yes'),
        Question(kind, question.format(wrong), 'no'),
    ]


def _exists(scene: Scene, rng, held_out: bool) -> list[Question]:
    """Something present, and something absent that shares a colour or shape with an object."""
    looks = {each.look for each in scene.objects}
    shapes, colours = {shape for _, shape in looks}, {colour for colour, _ in looks}
    near = [
        (colour, shape)
        for colour in COLOURS
        for shape in SHAPES
        if (colour, shape) not in looks
        and (colour in colours or shape in shapes)
        and (held_out or not held_out_look(colour, shape))
    ]
    present, absent = _any(rng, scene.objects), _any(rng, near)
    by_look = _both('exists', 'is there {}?', *(_one(*look) for look in (present.look, absent)))
    missing = [shape for shape in SHAPES if shape not in shapes]
    if not missing:
        return by_look
    pair = _one(None, present.shape), _one(None, _any(rng, missing))
    return by_look + _both('exists', 'is there {}?', *pair)


def _count(scene: Scene, rng) -> list[Question]:
    one, another = _any(rng, scene.objects), _any(rng, scene.objects)
    asked = {
        'objects': len(scene.objects),
        _many(None, one.shape): sum(o.shape == one.shape for o in scene.objects),
        _many(another.colour, None): sum(o.colour == another.colour for o in scene.objects),
    }
    return [Question('count', f'how many {w} are there?', NUMBERS[n]) for w, n in asked.items()]


def _colour_and_shape(scene: Scene) -> list[Question]:
    """The colour of each shape that has only one, the shape of each colour that has only one."""
    found = []
    for kind, given in (('colour', 'shape'), ('shape', 'colour')):
        for value in dict.fromkeys(getattr(o, given) for o in scene.objects):
            asked = [o for o in scene.objects if getattr(o, given) == value]
            answers = {getattr(o, kind) for o in asked}
            if len(answers) > 1:
                continue
            look = (None, value) if given == 'shape' else (value, None)
            which = f'is the {_bare(*look)}' if len(asked) == 1 else f'are the {_many(*look)}'
            found.append(Question(kind, f'what {kind} {which}?', answers.pop()))
    return found


def _where(scene: Scene, rng) -> list[Question]:
    """The place of each object that a name singles out, if the place is clear."""
    found = []
    for each in scene.objects:
        shape = sum(o.shape == each.shape for o in scene.objects)
        look = sum(o.look == each.look for o in scene.objects)
        if look == 1 and place_of(each):
            name = _bare(None if shape == 1 and rng.random() < 0.5 else each.colour, each.shape)
            found.append(Question('where', f'where is the {name}?', place_of(each)))
    return found


def _relation(scene: Scene, rng, held_out: bool) -> list[Question]:
    """For two shapes: the relation of one to the other, and its inverse, which is false."""
    if len(scene.objects) != 2 or scene.objects[0].shape == scene.objects[1].shape:
        return []
    a, b = (scene.objects[i] for i in rng.permutation(2))
    found = []
    for said in relations(a, b):
        if held_out or not held_out_relation(a.shape, INVERSE[said], b.shape):
            text = f'is the {a.shape} {{}} the {b.shape}?'
            found += _both('where', text, said, INVERSE[said])
    return found


def _compare(scene: Scene, rng) -> list[Question]:
    """Two shapes with different counts, one of which may be 0."""
    count = Counter(each.shape for each in scene.objects)
    pairs = [(a, b) for a in SHAPES for b in SHAPES if count[a] > count[b]]
    if not pairs:  # one of each
        return []
    present = [pair for pair in pairs if count[pair[1]]]
    more, fewer = (_many(None, shape) for shape in _any(rng, present or pairs))
    if rng.random() < 0.5:
        pair = f'more {more} than {fewer}', f'more {fewer} than {more}'
    else:
        pair = f'fewer {fewer} than {more}', f'fewer {more} than {fewer}'
    return _both('compare', 'are there {}?', *pair)


def _same(scene: Scene) -> list[Question]:
    if len(scene.objects) < 2:
        return []
    return [
        Question(
            'same',
            f'do all objects have the same {what}?',
            'yes' if len({getattr(o, what) for o in scene.objects}) == 1 else 'no',
        )
        for what in ('colour', 'shape')
    ]


def _one(colour: str | None, shape: str | None) -> str:
    return say_group(Group(1, shape, colour))


def _bare(colour: str | None, shape: str | None) -> str:
    return _one(colour, shape).partition(' ')[2]


def _many(colour: str | None, shape: str | None) -> str:
    return say_group(Group(2, shape, colour)).partition(' ')[2]


def _any(rng, choices: Sequence):
    return choices[int(rng.integers(len(choices)))]
