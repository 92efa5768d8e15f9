"""geneval_like.variety: how many places and colours generated images use, as a perplexity."""

import numpy as np
import pytest

from rf_jax.evaluation import geneval_like
from rf_jax.scenes import render, world


def images(places, colours):
    """One circle each, at the middle of a third by a third."""
    for (row, column), colour in zip(places, colours, strict=True):
        circle = world.Object(
            'circle', colour, 'large', 'plain', (column + 0.5) / 3, (row + 0.5) / 3, 0.12
        )
        yield render.render(world.Scene((circle,), 'dark', 0, 'single'), 48)


NINE = [(row, column) for row in range(3) for column in range(3)]
COLOURS = list(world.COLOURS)


def test_evenly_spread_objects_have_as_many_places_and_colours_as_there_are():
    found = geneval_like.variety(images(NINE * 8, [c for c in COLOURS[:8] for _ in range(9)]))
    assert found == {'places': pytest.approx(9), 'colours': pytest.approx(8)}


def test_equal_images_have_one_place_and_one_colour():
    found = geneval_like.variety(images([(2, 2)] * 5, ['red'] * 5))
    assert found == {'places': pytest.approx(1), 'colours': pytest.approx(1)}


def test_an_empty_image_has_none():
    black = np.zeros((48, 48, 3), np.uint8)
    assert geneval_like.variety([black]) == {
        'places': 0.0,
        'colours': 0.0,
    }


def test_perplexity_is_the_exponential_of_the_entropy():
    assert geneval_like.perplexity([3, 1, 0]) == pytest.approx(4 / 3**0.75)
