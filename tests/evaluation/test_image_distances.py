"""image_distances.py: zero within a distribution, larger for worse images."""

import numpy as np
import pytest

from rf_jax.evaluation import image_distances
from rf_jax.scenes import render, world

KINDS = ('kernel_distance', 'frechet_distance')


def images(seed, count=300, rung='free'):
    made = (world.make(seed, i, world.RUNGS[rung]) for i in range(count))
    return [render.render(scene, 32) for scene in made]


@pytest.fixture(scope='module')
def real():
    return images(1)


@pytest.fixture(scope='module')
def other():
    """Another draw of the same distribution, and so what chance alone puts between sets."""
    return images(2)


def blurred(image, sigma):
    away = np.subtract.outer(np.arange(32), np.arange(32)) / sigma
    kernel = np.exp(-0.5 * away**2)
    kernel /= kernel.sum(1, keepdims=True)
    soft = np.einsum('ij,jkc,lk->ilc', kernel, image.astype(float), kernel, optimize=True)
    return np.rint(soft).astype(np.uint8)


def paler(image, share):
    grey = image.mean(-1, keepdims=True)
    return np.rint((1 - share) * image + share * grey).astype(np.uint8)


def scores(real, *sets):
    found = [image_distances.distances(each, real) for each in sets]
    return {kind: [each[kind] for each in found] for kind in KINDS}


def test_blur_counts(real, other):
    spoilt = [[blurred(each, sigma) for each in other] for sigma in (0.6, 1.0, 2.0)]
    for values in scores(real, other, *spoilt).values():
        assert values == sorted(values)
    kernel = scores(real, other, *spoilt)['kernel_distance']
    assert abs(kernel[0]) < 0.3 * kernel[1]


def test_wrong_colours_count(real, other):
    spoilt = [[paler(each, share) for each in other] for share in (0.25, 0.6)]
    for values in scores(real, other, *spoilt).values():
        assert values == sorted(values)
    kernel = scores(real, other, *spoilt)['kernel_distance']
    assert abs(kernel[0]) < 0.3 * kernel[1]


def test_too_few_kinds_of_images_count(real, other):
    """Each image is perfect, but a model that generates only ten is far from the whole set."""
    for values in scores(real, other, other[:10] * 30).values():
        assert values[1] > 4 * abs(values[0])


def test_kernel_distance_is_unbiased():
    """Its mean over many small sets of one distribution is 0; the biased one's is not."""
    rng = np.random.default_rng(0)
    found = [
        image_distances.kernel_distance(rng.normal(size=(10, 8)), rng.normal(size=(10, 8)))
        for _ in range(400)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / 20
    assert min(found) < 0


def test_frechet_distance_of_known_gaussians():
    """(mean gap)² + (difference of the deviations)², summed, where features are independent."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(40_000, 3)), rng.normal(size=(40_000, 3)) * [1, 2, 3] + [0, 0, 2]
    assert image_distances.frechet_distance(a, b) == pytest.approx(4 + 1 + 4, rel=0.02)
    assert image_distances.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_symmetric_and_repeatable(real, other):
    there, back = image_distances.distances(real, other), image_distances.distances(other, real)
    for kind in KINDS:
        assert there[kind] == pytest.approx(back[kind], rel=1e-9, abs=1e-12)
    image_distances._weights.cache_clear()
    image_distances._scale.cache_clear()
    assert image_distances.distances(real, other) == there


def test_features_do_not_depend_on_the_batch(real):
    whole = image_distances.features(real)
    assert whole.shape == (300, 64)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(image_distances.features(real[60:63]), whole[60:63], atol=1e-4)


def test_sets_that_cannot_be_compared(real):
    with pytest.raises(ValueError, match='two images'):
        image_distances.distances(real[:1], real)
    with pytest.raises(ValueError, match='one size'):
        image_distances.distances(real[:5], [np.zeros((24, 24, 3), np.uint8)] * 5)
