"""judge.py on true renderings: it accepts true claims, and hardly any others."""

from dataclasses import replace

import numpy as np
import pytest

from rf_jax.scenes import claims, judge, render, world

pytestmark = pytest.mark.slow

SCENES = 50
SIZES = (24, 32, 48, 64, 128, 256)
MILD = 8  # standard deviation of noise, of 255


def exact(scene):
    """Everything that can be claimed of a scene: each look, its count, the relation of a pair."""
    looks = [each.look for each in scene.objects]
    groups = [claims.Group(looks.count(look), look[1], look[0]) for look in dict.fromkeys(looks)]
    said = world.relations(*scene.objects) if len(groups) == len(looks) == 2 else []
    return claims.Claim(tuple(groups), said[0] if said else '', exact=True)


def one_word_changed(claim):
    """All claims that differ in one colour, shape, number or relation."""
    words = {'colour': world.COLOURS, 'shape': world.SHAPES, 'count': range(1, 7)}
    for i, group in enumerate(claim.groups):
        for name, choices in words.items():
            for word in choices:
                other = replace(group, **{name: word})
                yield replace(claim, groups=(*claim.groups[:i], other, *claim.groups[i + 1 :]))
    for relation in world.RELATIONS if claim.relation else ():
        yield replace(claim, relation=relation)


def blurred(image, sigma):
    size = len(image)
    away = np.subtract.outer(np.arange(size), np.arange(size)) / sigma
    kernel = np.exp(-0.5 * away**2)
    kernel = (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
    return np.einsum('ij,jkc,lk->ilc', kernel, image, kernel, optimize=True)


def worse(image, rng):
    """Adds mild blur and noise."""
    soft = blurred(image.astype(np.float32), 0.5 if len(image) <= 48 else 1.0)
    noisy = soft + MILD * rng.standard_normal(image.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def rates(rung, size, change=lambda image, rng: image):
    """(fraction of exact claims accepted, fraction of false claims accepted)."""
    rng, right, wrong = np.random.default_rng(size), [], []
    for i in range(SCENES):
        scene = world.make(size, i, world.RUNGS[rung], held_out=i % 4 == 0)
        claim = exact(scene)
        assert claims.holds(claim, scene.objects)
        found = judge.detect(change(render.render(scene, size), rng))
        right.append(claims.holds(claim, found))
        wrong += [
            claims.holds(other, found)
            for other in one_word_changed(claim)
            if not claims.holds(other, scene.objects)
        ]
    assert len(wrong) > 15 * SCENES
    return np.mean(right), np.mean(wrong)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('rung', world.RUNGS)
def test_true_renderings(rung, size):
    right, wrong = rates(rung, size)
    assert right >= 0.995
    assert wrong <= 0.005


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('rung', world.RUNGS)
def test_mild_blur_and_noise(rung, size):
    right, wrong = rates(rung, size, worse)
    assert right >= 0.97
    assert wrong <= 0.01


@pytest.mark.parametrize('rung', world.RUNGS)
def test_objects_are_detected_where_they_are(rung):
    for i in range(30):
        scene = world.make(1, i, world.RUNGS[rung])
        found = judge.detect(render.render(scene, 32))
        assert len(found) == len(scene.objects)
        for each in scene.objects:
            near = min(found, key=lambda other: np.hypot(other.x - each.x, other.y - each.y))
            assert (near.shape, near.colour) == (each.shape, each.colour)
            assert np.hypot(near.x - each.x, near.y - each.y) < 0.01
            assert abs(near.radius - each.radius) < 0.01
            assert 0.9 < near.confidence <= 1


def alone(shape, colour='red', ground='dark'):
    each = world.Object(shape, colour, 'large', 'plain', 0.5, 0.45, 0.14)
    return world.Scene((each,), ground, 0, 'single')


@pytest.mark.parametrize('size', (24, 48, 128))
@pytest.mark.parametrize('halves', [('cross', 'triangle'), ('ring', 'cross'), ('triangle', 'ring')])
def test_two_mismatched_halves_are_not_a_shape(halves, size):
    """Weak models generate quarters and halves that do not fit together."""
    left, right = (render.render(alone(shape), size) for shape in halves)
    left[:, size // 2 :] = right[:, size // 2 :]
    (found,) = judge.detect(left)
    assert (found.shape, found.colour) == (None, 'red')
    for shape in world.SHAPES:
        assert not judge.accepts(claims.Claim((claims.Group(1, shape),)), left)


@pytest.mark.parametrize('shape', world.SHAPES)
@pytest.mark.parametrize('colour', world.COLOURS)
def test_pale_colours_and_soft_edges_are_accepted(colour, shape):
    scene = alone(shape, colour, 'grey')
    image = blurred(render.render(scene, 32).astype(np.float32), 0.6)
    pale = 0.8 * image + 0.2 * image.mean(-1, keepdims=True)
    (found,) = judge.detect(np.rint(pale).astype(np.uint8))
    assert (found.shape, found.colour) == (shape, colour)


def test_noise_and_empty_grounds_contain_no_objects():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    assert not [each for each in judge.detect(noise) if each.shape]
    for grey in (0, 25, 85, 255):
        assert judge.detect(np.full((24, 24, 3), grey, np.uint8)) == []
    for i in range(20):
        scene = replace(world.make(0, i, world.RUNGS['crowded']), objects=())
        assert judge.detect(render.render(scene, 48)) == []


@pytest.mark.parametrize('size', (24, 48, 100))
def test_a_mixed_colour_at_a_border_is_not_an_object(size):
    """Red and yellow mix to orange, wherever the border falls within a pixel."""
    for shift in np.linspace(0, 1, 6) / min(size, 32):
        left = world.Object('square', 'red', 'large', 'plain', 0.36 + shift, 0.5, 0.15)
        right = replace(left, colour='yellow', x=left.x + 0.27)
        scene = world.Scene((left, right), 'dark', 0, 'pair')
        found = judge.detect(render.render(scene, size))
        assert sorted(each.colour for each in found) == ['red', 'yellow']
        assert {each.shape for each in found} == {'square'}


def test_specks_are_not_objects():
    image = render.render(alone('ring'), 24)
    image[2, 2:4] = world.COLOURS['green']
    image[21, 20] = world.COLOURS['white']
    assert [each.shape for each in judge.detect(image)] == ['ring']


def test_only_square_uint8_images_are_accepted():
    with pytest.raises(ValueError, match='square'):
        judge.detect(np.zeros((32, 24, 3), np.uint8))
    with pytest.raises(ValueError, match='float32'):
        judge.detect(np.zeros((32, 32, 3), np.float32))
