"""Distances between a set of generated images and a set of real ones: kernel and Fréchet.

Both compare features of a fixed network: here a convolutional one with random weights of a fixed
seed, so that nothing is downloaded. Values compare with each other, not with published ones.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rf_jax.runtime.rng import generator
from rf_jax.scenes import render, world

_CHANNELS = (3, 32, 64, 128)  # of the input and of each layer
_WIDTH = 64  # features of an image
_WINDOW = 5
_BATCH = 50
_SCALE = 100  # scenes of each rung that standardise every statistic


def distances(generated: Sequence[np.ndarray], real: Sequence[np.ndarray]) -> dict[str, float]:
    """`kernel_distance` and `frechet_distance` of two sets of images, uint8 [s, s, 3] each.

    Raises ValueError for fewer than two images, or images of different sizes.
    """
    sizes = {image.shape for image in (*generated, *real)}
    if len(sizes) > 1:
        raise ValueError(f'distances need images of one size; got {sorted(sizes)}')
    if min(len(generated), len(real)) < 2:
        raise ValueError(f'distances need two images per set; got {len(generated)} and {len(real)}')
    a, b = features(generated), features(real)
    return {
        'kernel_distance': kernel_distance(a, b),
        'frechet_distance': frechet_distance(a, b),
    }


def features(images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, 64] of uint8 images [s, s, 3] of one size, with a variance of about 1.

    Bounded, so that a few outliers do not outweigh all other images.
    """
    kernels, mix = _weights()
    mean, deviation = _scale(len(images[0]))
    return (2 * np.tanh((_statistics(kernels, images) - mean) / (2 * deviation))) @ mix


@functools.lru_cache(maxsize=1)
def _weights() -> tuple[list[np.ndarray], np.ndarray]:
    """(kernels of the layers, projection of their statistics), float32.

    A kernel sums to 0, so that uniform areas such as the ground do not drown the shapes.
    """
    rng = generator(0, 'distance features')
    kernels = []
    for inputs, outputs in itertools.pairwise(_CHANNELS):
        shape = (_WINDOW, _WINDOW, inputs, outputs)
        kernel = rng.standard_normal(shape) * np.sqrt(2 / (_WINDOW**2 * inputs))
        kernels.append((kernel - kernel.mean((0, 1, 2))).astype(np.float32))
    statistics = 3 * sum(_CHANNELS)
    mix = rng.standard_normal((statistics, _WIDTH)) / np.sqrt(statistics)
    return kernels, mix.astype(np.float32)


@functools.lru_cache(maxsize=4)
def _scale(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each statistic over fixed scenes, to standardise them."""
    images = [
        render.render(world.make(0, i, rung), size)
        for rung in world.RUNGS.values()
        for i in range(_SCALE)
    ]
    statistics = _statistics(_weights()[0], images)
    return statistics.mean(0), statistics.std(0) + 1e-3


def _statistics(kernels, images: Sequence[np.ndarray]) -> np.ndarray:
    statistics = []
    for start in range(0, len(images), _BATCH):
        batch = np.stack(images[start : start + _BATCH])
        padded = np.concatenate([batch, np.repeat(batch[:1], _BATCH - len(batch), 0)])
        statistics.append(np.asarray(_forward(kernels, padded))[: len(batch)])
    return np.concatenate(statistics)


@jax.jit
def _forward(kernels, images):
    """Mean, standard deviation and maximum over the image of each channel of each layer."""
    x = images.astype(jnp.float32) / 127.5 - 1
    layers = [x]
    for kernel in kernels:
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(2, 2),
            padding='SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            precision=jax.lax.Precision.HIGHEST,
        )
        x = jax.nn.relu(x)
        layers.append(x)
    return jnp.concatenate([f(x, (1, 2)) for x in layers for f in (jnp.mean, jnp.std, jnp.max)], 1)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD of features [n, D] and [m, D], kernel (x.y / D + 1)³.

    As KID (Bińkowski et al., arXiv 1801.01401, section 4), on the whole sets. For sets of one
    distribution it can be negative. n and m are at least 2.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance of Gaussians fitted to features [n, D] and [m, D].

    As FID (Heusel et al., arXiv 1706.08500). Smaller sets give larger distances: compare only sets
    of equally many images.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    between = ((a.mean(0) - b.mean(0)) ** 2).sum()
    return float(max(0.0, between + np.trace(first) + np.trace(second) - 2 * cross))
