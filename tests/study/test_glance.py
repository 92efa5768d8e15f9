"""glance.py: tokens as a map of the mean training patches, above the images."""

from types import SimpleNamespace

import numpy as np
import pytest

from rf_jax.generation.generated_image import GeneratedImage
from rf_jax.runtime.errors import UserError
from rf_jax.study import glance

SIDE = 16


def flat(*colour):
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def test_a_token_is_shown_where_it_stands():
    means = {3: flat(255, 0, 0), 5: flat(0, 0, 255)}
    shown = glance.token_map(np.array([[3, 5], [7, 3]]), means, SIDE)
    assert shown.shape == (2 * SIDE, 2 * SIDE, 3)
    np.testing.assert_array_equal(shown[:SIDE, :SIDE], means[3])
    np.testing.assert_array_equal(shown[:SIDE, SIDE:], means[5])
    assert not shown[SIDE:, :SIDE].any(), 'no training patch has this token'


def test_three_rows():
    inspector = SimpleNamespace(side=SIDE, mean_pieces=lambda images: {1: flat(*images[0][0, 0])})
    image = np.full((2 * SIDE, 2 * SIDE, 3), 40, np.uint8)
    tokens = np.ones((2, 2), int)
    with_tokens = [GeneratedImage(image, tokens, prompt, 0) for prompt in ('a cat', 'a dog')]
    without = [GeneratedImage(image + 60, None, each.prompt, 0) for each in with_tokens]
    sheet = glance.sheet(inspector, with_tokens, without, [flat(9, 200, 9)])
    colours = [tuple(c) for c in ((9, 200, 9), (40, 40, 40), (100, 100, 100))]
    first = {c: np.flatnonzero((sheet == c).all(-1).any(1)).min() for c in colours}
    assert sorted(colours, key=first.get) == colours, 'tokens, then RF, then plain pixels'


@pytest.mark.parametrize('name', ['glance.txt', 'glance', 'folder.png', 'file/glance.png'])
def test_a_place_that_cannot_be_written_is_said_before_anything_is_loaded(tmp_path, name):
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='--out'):
        glance.write('none', 'none', ['a cat'], 0, tmp_path / name)
