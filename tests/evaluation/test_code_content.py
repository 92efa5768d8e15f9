"""What codes say about content and place, on codes for which the answer is known."""

import math

import numpy as np

from rf_jax.evaluation import code_content
from rf_jax.scenes import world

RUNG = world.RUNGS['aligned']


def looks(count: int = 400):
    found = [code_content.labels(world.make(0, i, RUNG), 48, 3) for i in range(count)]
    return np.stack(found)


def test_labels_are_the_objects_of_the_cells():
    scene = world.make(3, 1, RUNG)
    found = code_content.labels(scene, 48, 3)
    assert (found >= 0).sum() == len(scene.objects)
    for each in scene.objects:
        colour, shape = divmod(found[int(each.y * 3), int(each.x * 3)], len(world.SHAPES))
        assert (list(world.COLOURS)[colour], world.SHAPES[shape]) == (each.colour, each.shape)


def test_codes_that_are_the_content_have_nothing_unexplained():
    content = looks()
    found = code_content.measure((content + 1) * 7 % 101, content)
    assert math.isclose(found.shared, code_content.entropy(content.ravel()))
    assert abs(found.unexplained) < 1e-9 and found.place < 0.1


def test_codes_of_the_place_say_nothing_about_the_content():
    content = looks()
    found = code_content.measure(
        np.broadcast_to(np.arange(9).reshape(3, 3), content.shape), content
    )
    assert math.isclose(found.place, math.log2(9)) and found.shared < 0.2


def test_spread_over_codes_by_chance_is_unexplained():
    content = looks()
    coin = np.random.default_rng(0).integers(0, 2, content.shape)
    found = code_content.measure(2 * (content + 1) + coin, content)
    assert 0.9 < found.unexplained < 1.0
    assert math.isclose(found.shared, code_content.entropy(content.ravel()), rel_tol=1e-6)
