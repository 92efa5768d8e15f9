"""language.py: captions are true and exact, questions have the answers that a reader would give.

Captions are parsed from their text alone, so a wrong claim cannot make a wrong text pass.
"""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from rf_jax.runtime.rng import generator
from rf_jax.scenes import language, world
from rf_jax.scenes.claims import NUMBERS, PLACES, Claim, Group, holds
from rf_jax.scenes.language import say
from rf_jax.scenes.world import COLOURS, GROUNDS, RELATIONS, RUNGS, SHAPES, SIZES, TEXTURES

COUNT = 500
rungs = pytest.mark.parametrize('name', RUNGS)
_PLURAL = {('crosses' if s == 'cross' else f'{s}s'): s for s in SHAPES}
_ITEM = re.compile(
    rf'(?P<number>an?|{"|".join(NUMBERS[2:])})'
    rf'(?: (?P<size>{"|".join(SIZES)}))?(?: (?P<texture>{"|".join(TEXTURES)}))?'
    rf'(?: (?P<colour>{"|".join(COLOURS)}))?'
    rf' (?P<shape>{"|".join([*_PLURAL, *SHAPES])})(?: (?P<place>{"|".join(PLACES)}))?'
)


def read(text):
    """The claim of an exact caption."""
    ground = re.search(rf'^on a ({"|".join(GROUNDS)}) ground, | on a ({"|".join(GROUNDS)}) ground$',
                       text)  # fmt: skip
    if ground:
        text = text.replace(ground[0], '')
    relation = re.search(rf' ({"|".join(RELATIONS)}) ', text)
    parts = re.split(rf', | and | (?:{"|".join(RELATIONS)}) ', text)
    groups = []
    for part in parts:
        item = _ITEM.fullmatch(part)
        assert item, f'{part!r} of {text!r}'
        found = item.groupdict()
        number, shape = found.pop('number'), found.pop('shape')
        count = 1 if number in ('a', 'an') else NUMBERS.index(number)
        assert (count > 1) == (shape in _PLURAL)
        assert (number == 'an') == (part.split()[1][0] in 'aeiou') or count > 1
        place = found.pop('place') or ''
        groups.append(Group(count, _PLURAL.get(shape, shape), place=place, **found))
    return Claim(
        tuple(groups),
        relation[1] if relation else '',
        exact=True,
        ground=(ground[1] or ground[2]) if ground else '',
    )


def made(name, held_out=False, count=COUNT):
    for i in range(count):
        scene = world.make(0, i, RUNGS[name], held_out)
        rng = generator('words', i)
        words = language.captions(scene, RUNGS[name], rng)
        yield scene, words, language.questions(scene, rng, held_out)


@pytest.mark.parametrize(
    ('text', 'claim'),
    [
        ('a circle', Claim((Group(1, 'circle'),))),
        ('an orange circle', Claim((Group(1, 'circle', 'orange'),))),
        (
            'a red circle and a blue square',
            Claim((Group(1, 'circle', 'red'), Group(1, 'square', 'blue'))),
        ),
        ('three green triangles', Claim((Group(3, 'triangle', 'green'),))),
        (
            'a red circle left of a blue square',
            Claim((Group(1, 'circle', 'red'), Group(1, 'square', 'blue')), 'left of'),
        ),
        (
            'two red crosses, a blue square and a cyan ring',
            Claim((Group(2, 'cross', 'red'), Group(1, 'square', 'blue'), Group(1, 'ring', 'cyan'))),
        ),
        ('a red circle at the top left', Claim((Group(1, 'circle', 'red', 'at the top left'),))),
        ('two objects', Claim((Group(2, None),))),
        (
            'a small striped red circle on a dark ground',
            Claim((Group(1, 'circle', 'red', size='small', texture='striped'),), ground='dark'),
        ),
    ],
)  # fmt: skip
def test_wording_of_claims(text, claim):
    assert say(claim) == text


@rungs
@pytest.mark.parametrize('held_out', [False, True])
def test_every_caption_is_true_and_states_its_claim(name, held_out):
    for scene, words, _ in made(name, held_out):
        assert len({each.text for each in words}) == len(words) >= 2
        for each in words:
            assert read(each.text) == each.claim
            assert holds(each.claim, scene.objects, scene.ground)
        assert all(len(each.text.split()) <= 16 for each in words[:-1])


@rungs
def test_the_long_caption_names_everything(name):
    rung = RUNGS[name]
    orders = Counter()
    for scene, words, _ in made(name):
        claim = words[-1].claim
        assert claim.ground == scene.ground and len(claim.groups) == len(scene.objects)
        named = Counter((g.shape, g.colour) for g in claim.groups)
        assert named == Counter((o.shape, o.colour) for o in scene.objects)
        for group in claim.groups:
            assert (group.size is not None) == (len(rung.sizes) > 1)
            assert (group.texture is not None) == (len(rung.textures) > 1)
            assert group.place or not rung.grid
        orders[words[-1].text.startswith('on a')] += 1
    assert min(orders.values()) > COUNT / 3  # both word orders occur


@rungs
def test_the_templates_of_all_prompt_categories_occur(name):
    """Training captions use the same wording as the prompt sets."""
    forms = Counter()
    for _, words, _ in made(name):
        for each in words:
            text = re.sub('|'.join(COLOURS), 'C', each.text)
            forms[re.sub('|'.join([*_PLURAL, *SHAPES, *RELATIONS]), 'X', text)] += 1
    shown = (
        'a X',
        'a C X',
        'a X and a X',
        'a C X and a C X',
        'a X X a X',
        'a C X X a C X',
        'two X',
    )
    assert all(forms[form] >= 15 for form in shown), forms
    assert forms['three X'] >= 10 and forms['four X'] >= 10


def changed(text, rng):
    """(class of word, caption with one word of it changed) for each class in the caption."""
    numbers = NUMBERS[2:5]
    for kind, words in {
        'shape': SHAPES, 'plural': tuple(_PLURAL), 'colour': tuple(COLOURS), 'number': numbers,
        'relation': RELATIONS, 'place': tuple(PLACES), 'size': tuple(SIZES),
        'texture': TEXTURES, 'ground': tuple(f'{g} ground' for g in GROUNDS),
    }.items():  # fmt: skip
        # Longest first: 'at the top left' is not 'at the top'.
        pattern = '|'.join(sorted(words, key=len, reverse=True))
        spots = list(re.finditer(rf'\b({pattern})\b', text))
        if spots:
            spot = spots[rng.integers(len(spots))]
            others = [word for word in words if word != spot[0]]
            new = others[rng.integers(len(others))]
            other = text[: spot.start()] + new + text[spot.end() :]
            yield kind, re.sub(r'\ban?\b(?= ([aeiou])?)', lambda m: 'an' if m[1] else 'a', other)


@rungs
def test_one_changed_word_makes_a_caption_false(name):
    rng = np.random.default_rng(0)
    false, all_ = Counter(), Counter()
    for scene, words, _ in made(name):
        for each in words:
            for kind, text in changed(each.text, rng):
                all_[kind] += 1
                false[kind] += not holds(read(text), scene.objects, scene.ground)
    assert {'shape', 'plural', 'colour', 'number', 'relation', 'place', 'ground'} <= set(all_)
    for kind in all_:
        assert false[kind] >= 0.99 * all_[kind], (kind, false[kind], all_[kind])
    assert false.total() >= 0.998 * all_.total()


@rungs
def test_captions_of_another_scene_are_mostly_false(name):
    found = list(made(name, count=100))
    true = [
        holds(each.claim, scene.objects, scene.ground)
        for i, (scene, _, _) in enumerate(found)
        for j, (_, words, _) in enumerate(found)
        for each in words
        if i != j
    ]
    assert np.mean(true) < 0.02


@rungs
def test_training_text_never_mentions_held_out_looks(name):
    """Not even in a question whose answer is no."""
    looks = [f'{c} {s}' for c, s in product(COLOURS, SHAPES) if world.held_out_look(c, s)]
    said = [
        f'{a} {r} {thing} {b}'
        for a, r, b in product(SHAPES, RELATIONS, SHAPES)
        if world.held_out_relation(a, r, b)
        for thing in ('a', 'an', 'the', *(f'{x} {c}' for x in ('a', 'an') for c in COLOURS))
    ]
    banned = re.compile('|'.join(looks + said))
    sides = Counter()
    for held_out in (False, True):
        for _, words, asked in made(name, held_out):
            texts = [each.text for each in words] + [each.question for each in asked]
            sides[held_out] += any(banned.search(text) for text in texts)
    assert sides[False] == 0 and sides[True] > 0.95 * COUNT


def answer(question, objects):
    """The answer, derived from the text of the question, asserting that there is only one."""

    def matching(words):
        words = words.removeprefix('the ').removeprefix('a ').removeprefix('an ').split()
        shape = _PLURAL.get(words[-1], words[-1])
        assert shape in SHAPES or shape in ('object', 'objects'), question
        return [
            o
            for o in objects
            if (shape not in SHAPES or o.shape == shape) and set(words[:-1]) <= {o.colour}
        ]

    def yes(truth):
        return 'yes' if truth else 'no'

    if found := re.fullmatch(r'is there (.*)\?', question):
        return 'exists', yes(matching(found[1]))
    if found := re.fullmatch(r'how many (.*) are there\?', question):
        return 'count', NUMBERS[len(matching(found[1]))]
    if found := re.fullmatch(r'what (colour|shape) (is|are) (.*)\?', question):
        asked = matching(found[3])
        assert (len(asked) == 1) == (found[2] == 'is') and asked
        (value,) = {getattr(o, found[1]) for o in asked}
        return found[1], value
    if found := re.fullmatch(r'where is (.*)\?', question):
        (each,) = matching(found[1])
        row, column = (('low', 'mid', 'high')[int(v * 3)] for v in (each.y, each.x))
        rows = {'low': 'top', 'mid': '', 'high': 'bottom'}
        columns = {'low': 'left', 'mid': '', 'high': 'right'}
        words = f'{rows[row]} {columns[column]}'.split()
        if not words:
            return 'where', 'in the middle'
        return 'where', ('at the ' if rows[row] else 'on the ') + ' '.join(words)
    if found := re.fullmatch(rf'is (.*) ({"|".join(RELATIONS)}) (.*)\?', question):
        ((a,), (b,)) = matching(found[1]), matching(found[3])
        horizontal = abs(a.x - b.x) > abs(a.y - b.y)
        if horizontal:
            return 'where', yes(found[2] == ('left of' if a.x < b.x else 'right of'))
        return 'where', yes(found[2] == ('above' if a.y < b.y else 'below'))
    if found := re.fullmatch(r'are there (more|fewer) (.*) than (.*)\?', question):
        difference = len(matching(found[2])) - len(matching(found[3]))
        assert difference  # equal numbers would be ambiguous
        return 'compare', yes(difference > 0 if found[1] == 'more' else difference < 0)
    found = re.fullmatch(r'do all objects have the same (colour|shape)\?', question)
    assert found and len(objects) > 1, question
    return 'same', yes(len({getattr(o, found[1]) for o in objects}) == 1)


@rungs
@pytest.mark.parametrize('held_out', [False, True])
def test_answers_are_right_and_kinds_are_balanced(name, held_out):
    answers = Counter()
    for scene, _, asked in made(name, held_out):
        assert len({each.question for each in asked}) == len(asked)
        for each in asked:
            assert (each.kind, each.answer) == answer(each.question, scene.objects), each.question
            assert len(each.answer.split()) <= 4
            answers[each.kind, each.answer] += 1
    kinds = {kind: sum(n for (k, _), n in answers.items() if k == kind) for kind, _ in answers}
    assert set(kinds) == {'exists', 'count', 'colour', 'shape', 'where', 'compare', 'same'}
    assert min(kinds.values()) >= COUNT
    for kind in ('exists', 'compare', 'where'):
        assert answers[kind, 'yes'] == answers[kind, 'no'] > 50
    assert answers['same', 'yes'] > 0.25 * kinds['same']
    for values in (('colour', COLOURS), ('shape', SHAPES), ('count', NUMBERS[1:5])):
        assert all(answers[values[0], value] >= 10 for value in values[1])


def test_six_shapes_once_each_leave_nothing_to_compare():
    objects = [
        world.Object(s, 'cyan', 'large', 'plain', (i + 0.5) / 6, 0.5, 0.05)
        for i, s in enumerate(SHAPES)
    ]
    scene = world.Scene(tuple(objects), 'dark', 0, 'mixed')
    asked = language.questions(scene, np.random.default_rng(0))
    assert 'compare' not in {each.kind for each in asked}
    for each in asked:
        assert (each.kind, each.answer) == answer(each.question, objects)
