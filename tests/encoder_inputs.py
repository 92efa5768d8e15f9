"""A small vision encoder's config and packed images for it."""

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import layout

WIDTH, HEADS, CHANNELS, REGISTERS = 24, 2, 12, 2
HEAD_DIM = WIDTH // HEADS
THETA, EPSILON = 50.0, 0.02  # neither is a default, and the epsilon is large enough to matter


def config(gated: bool) -> ConfigDict:
    return ConfigDict({
        'layers': 2, 'width': WIDTH, 'heads': HEADS, 'feedforward': 16, 'gated': gated,
        'unroll': 2, 'remat': 'none', 'registers': REGISTERS, 'layer_scale': 0.3,
        'rope_theta': THETA, 'norm_eps': EPSILON,
    })  # fmt: skip


def packed(sizes, capacity: int, images: int, seed: int):
    """One row of images as the layout lays them: patches, image, coords, and the slices."""
    rng = np.random.default_rng(seed)
    row = layout.Row(
        {'text': 0, 'vision': capacity // 4, 'representation': 0, 'pixels': 0,
         'vision_images': images, 'pixel_images': 0}, CHANNELS,
    )  # fmt: skip
    slices, at = [], 0
    for height, width in sizes:
        row.add([layout.Vision(height, width)])
        slices.append(slice(at, at + height * width))
        at += height * width
    patches = rng.normal(size=(1, capacity, CHANNELS)).astype(np.float32)
    return patches, row.arrays['vision_image'][None], row.arrays['vision_coords'][None], slices
