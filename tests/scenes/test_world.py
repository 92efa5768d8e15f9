"""world.py and render.py: a function of (seed, index), two splits, consistent maps."""

from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from rf_jax.scenes import render, world
from rf_jax.scenes.claims import related
from rf_jax.scenes.world import COLOURS, GROUNDS, RELATIONS, RUNGS, SHAPES, Object, Scene

rungs = pytest.mark.parametrize('rung', RUNGS.values(), ids=list(RUNGS))


def many(rung, count=500, held_out=False, seed=0):
    return [world.make(seed, i, rung, held_out) for i in range(count)]


def obj(shape='circle', colour='red', x=0.5, y=0.5, radius=0.2):
    return Object(shape, colour, 'large', 'plain', x, y, radius)


@rungs
def test_a_scene_is_a_function_of_seed_and_index(rung):
    forwards = many(rung, 50)
    backwards = [world.make(0, i, rung) for i in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) == 50
    assert not set(forwards) & set(many(rung, 50, seed=1))
    assert not set(forwards) & set(many(rung, 50, held_out=True))


def test_a_fixed_share_of_looks_and_relations_is_held_out():
    looks = [look for look in product(COLOURS, SHAPES) if world.held_out_look(*look)]
    assert len(looks) == 6 and {shape for _, shape in looks} == set(SHAPES)
    held = [s for s in product(SHAPES, RELATIONS, SHAPES) if world.held_out_relation(*s)]
    assert len(held) == 16 and Counter(r for _, r, _ in held) == dict.fromkeys(RELATIONS, 4)
    assert all(a != b and (b, world.INVERSE[r], a) in held for a, r, b in held)
    assert set(Counter(a for a, _, _ in held).values()) == {2, 3}


@rungs
def test_training_scenes_have_nothing_held_out(rung):
    held = {s for s in product(SHAPES, RELATIONS, SHAPES) if world.held_out_relation(*s)}
    for scene in many(rung):
        for each in scene.objects:
            assert not world.held_out_look(each.colour, each.shape)
        for a, b in combinations(scene.objects, 2):
            seen = {(a.shape, r, b.shape) for r in RELATIONS if related(a, r, b)}
            assert not seen & held


@rungs
def test_held_out_scenes_always_have_something_held_out(rung):
    by_look = 0
    for scene in many(rung, 200, held_out=True):
        look = any(world.held_out_look(*each.look) for each in scene.objects)
        by_look += look
        if not look:
            a, b = scene.objects
            (said,) = world.relations(a, b)
            assert world.held_out_relation(a.shape, said, b.shape)
    assert 0 < by_look < 200  # both kinds of held-out scenes occur


@rungs
def test_kinds_have_their_probabilities_and_contents(rung):
    found = many(rung, 1000)
    share = Counter(scene.kind for scene in found)
    for kind, expected in world.KINDS.items():
        assert abs(share[kind] / 1000 - expected) < 0.05  # three standard errors
    for scene in found:
        looks = [each.look for each in scene.objects]
        assert len(looks) <= rung.objects
        assert len(looks) in {'single': [1], 'pair': [2]}.get(scene.kind, range(2, 7))
        if scene.kind == 'alike':
            assert len(set(looks)) == 1
        if scene.kind == 'pair':
            assert len({shape for _, shape in looks}) == 2
    numbers = Counter(len(scene.objects) for scene in found)
    assert min(numbers[n] for n in range(1, rung.objects + 1)) >= 15
    used = {each.look for scene in found for each in scene.objects}
    assert len(used) == 42  # every look that is not held out


@rungs
def test_objects_are_inside_the_image_and_apart(rung):
    for scene in many(rung):
        for each in scene.objects:
            assert each.radius <= min(each.x, each.y, 1 - each.x, 1 - each.y)
        for a, b in combinations(scene.objects, 2):
            distance = np.hypot(a.x - b.x, a.y - b.y) / (a.radius + b.radius)
            if rung.grid:  # entirely within its own cell
                assert max(abs(a.x - b.x), abs(a.y - b.y)) * rung.grid > 0.999
                assert a.radius * rung.grid < 0.5
            else:
                assert distance > (1.49 if a.colour == b.colour else 1.3 * (1 - rung.overlap))


def test_kinds_that_need_more_objects_are_left_out():
    for objects, kinds in ((1, {'single'}), (2, {'single', 'pair', 'alike'})):
        rung = replace(RUNGS['free'], objects=objects)
        found = many(rung, 60)
        assert {scene.kind for scene in found} == kinds
        assert max(len(scene.objects) for scene in found) == objects


def test_a_relation_is_stated_only_if_no_other_holds():
    rng = np.random.default_rng(0)
    said = 0
    for x, y in rng.uniform(0, 1, (2000, 2)):
        a, b = obj(x=x, y=y), obj()
        found = world.relations(a, b)
        said += len(found)
        if found:
            assert found == [r for r in RELATIONS if related(a, r, b)]
            assert world.relations(b, a) == [world.INVERSE[found[0]]]
    assert 0.4 < said / 2000 < 0.7
    assert world.relations(obj(x=0.2), obj()) == ['left of']
    assert world.relations(obj(y=0.2), obj()) == ['above']
    assert world.relations(obj(x=0.2, y=0.2), obj()) == []


@rungs
@pytest.mark.parametrize('size', [24, 61, 256])
def test_maps_agree_with_the_image(rung, size):
    """A pixel of an object is closer to its colour than to the ground, and vice versa."""
    rung = replace(rung, textures=('plain',), clutter=False)
    for scene in many(rung, 20 if size < 200 else 5):
        image = render.render(scene, size).astype(float)
        numbers = render.segmentation(scene, size)
        depth = render.depth(scene, size)
        assert image.shape == (size, size, 3) and numbers.shape == depth.shape == (size, size)
        assert set(np.unique(numbers)) == set(range(len(scene.objects) + 1))
        ground = np.full(3, GROUNDS[scene.ground])
        to_ground = np.linalg.norm(image - ground, axis=-1)
        for number, each in enumerate(scene.objects, 1):
            colour = np.array(COLOURS[each.colour])
            to_object = np.linalg.norm(image - colour, axis=-1)
            assert (to_object <= to_ground + 2)[numbers == number].all()
            # Nothing hides the nearest object, so all of its pixels are visible.
            if number == len(scene.objects) and each.shape != 'ring':
                rows, columns = np.nonzero(numbers == number)
                assert abs(columns.mean() + 0.5 - each.x * size) < 0.6
                assert abs(np.median(rows) + 0.5 - each.y * size) <= 0.5 * each.radius * size
            assert len(np.unique(depth[numbers == number])) == 1
        far = numbers == 0
        most = max(np.linalg.norm(COLOURS[each.colour] - ground) for each in scene.objects)
        assert (to_ground[far] <= most / 2 + 2).all()
        far, *objects = (depth[numbers == n][0] for n in range(len(scene.objects) + 1))
        assert far == 1 and all(0 < each < 0.75 for each in objects)


def test_the_nearer_object_hides_the_farther():
    pair = Scene((obj(x=0.4), obj(colour='blue', x=0.6)), 'dark', 0, 'pair')
    middle = render.render(pair, 50)[25, 25]
    assert tuple(middle) == COLOURS['blue']
    assert render.segmentation(pair, 50)[25, 25] == 2
    assert 0 < render.depth(pair, 50)[25, 25] < render.depth(pair, 50)[25, 15]
    turned = replace(pair, objects=pair.objects[::-1])
    assert render.depth(turned, 50)[25, 25] < render.depth(turned, 50)[25, 35]
    assert tuple(render.render(turned, 50)[25, 25]) == COLOURS['red']


@rungs
def test_the_same_scene_at_another_size_is_the_same_image(rung):
    """The larger one, averaged down, equals the smaller one up to a few grey levels at edges."""
    for scene in many(rung, 20):
        small = render.render(scene, 48).astype(float)
        large = render.render(scene, 192).astype(float)
        averaged = large.reshape(48, 4, 48, 4, 3).mean((1, 3))
        assert abs(averaged - small).mean() < 1.5
        other = render.render(world.make(7, 3, rung), 48).astype(float)
        assert abs(averaged - other).mean() > 3


def test_texture_and_clutter_are_visible():
    plain = Scene((obj(radius=0.4),), 'grey', 0, 'single')
    flat = render.render(plain, 64)
    inside = render.segmentation(plain, 64) == 1
    for texture in world.TEXTURES[1:]:
        drawn = render.render(
            replace(plain, objects=(replace(plain.objects[0], texture=texture),)), 64
        )
        assert drawn[inside][:, 0].std() > flat[inside][:, 0].std() + 20
        assert (drawn[~inside] == flat[~inside]).mean() > 0.9
    wandering = render.render(replace(plain, clutter=5), 64)
    assert np.ptp(wandering[~inside]) > 15 and (wandering[30:34, 30:34] == flat[30:34, 30:34]).all()
