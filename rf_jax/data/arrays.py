"""Converts images as users have them in a notebook (arrays, Pillow images, paths) to uint8 RGB."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rf_jax.data import image_ops
from rf_jax.data.records import BadImage
from rf_jax.runtime.errors import UserError

_SINGLE = (str, Path, bytes, Image.Image)


def as_rgb(images: Sequence, max_pixels: int) -> list[np.ndarray]:
    """List of uint8 [h, w, 3] in sRGB, on white.

    `images`: a list, an array [n, h, w, channels], or a single image. Each image is a
    path, encoded bytes, a Pillow image, or an array [h, w] or [h, w, 1 | 2 | 3 | 4] (grey, grey and
    alpha, RGB, RGBA) of integers in [0, 255], floats in [0, 1] or bool. Raises UserError that says
    which image is wrong.
    """
    if is_single(images):
        images = [images]
    found = []
    for number, image in enumerate(images, 1):
        try:
            found.append(rgb(image, max_pixels))
        except BadImage as error:
            raise UserError(f'image {number} of {len(images)}: {error}') from None
    return found


def is_single(images) -> bool:
    """Whether this is one image rather than a sequence of them.

    Raises UserError for an array that is neither an image nor a batch of images.
    """
    if isinstance(images, _SINGLE):
        return True
    shape = getattr(images, 'shape', None)
    if shape is None and hasattr(images, '__array__'):
        shape = np.shape(images)
    if shape is None or len(shape) not in (2, 3):
        return False
    if len(shape) == 3 and shape[2] not in (1, 2, 3, 4):
        raise UserError(
            f'an array of shape {tuple(shape)} is neither an image [height, width, channels] '
            f'nor a batch [n, height, width, channels]{_channels_first(shape)}'
        )
    return True


def rgb(image, max_pixels: int) -> np.ndarray:
    """One image of those that `as_rgb` takes; raises BadImage."""
    if isinstance(image, Image.Image):
        return image_ops.upright_rgb(image, max_pixels)
    if isinstance(image, _SINGLE):
        return image_ops.read_rgb(image, max_pixels)
    try:
        values = np.asarray(image)
    except Exception as error:  # ragged lists, tensors on another device, ...
        raise BadImage(f'{type(image).__name__} is not an array: {error}') from error
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[2] in (2, 3, 4)):
        what = ', a batch: pass its images one by one' if values.ndim == 4 else ''
        raise BadImage(
            f'an array of shape {values.shape}{what}; expected [height, width] or [height, width, '
            f'1 to 4 channels]{_channels_first(values.shape)}'
        )
    if values.size == 0:
        raise BadImage(f'an array of shape {values.shape} has no pixels')
    if values.shape[0] * values.shape[1] > max_pixels:
        raise BadImage(f'{values.shape[0]} x {values.shape[1]} is more than {max_pixels} pixels')
    values = _bytes(values)
    if values.ndim == 3 and values.shape[2] == 3:
        return values
    return np.array(image_ops.upright_rgb(Image.fromarray(values), max_pixels))


def _bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of the same shape; raises BadImage where it is unclear which value is white."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    expected = 'expected integers in [0, 255] or floats in [0, 1]'
    if np.issubdtype(values.dtype, np.integer):
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 255:
            raise BadImage(f'{values.dtype} values from {low} to {high}; {expected}')
        return values.astype(np.uint8)
    try:
        floats = values.astype(np.float32, casting='same_kind')  # bfloat16 too
    except TypeError:
        raise BadImage(f'values of type {values.dtype}; {expected}') from None
    if not np.isfinite(floats).all():
        raise BadImage(f'{values.dtype} values with nan or infinity; {expected}')
    if floats.min() < 0 or floats.max() > 1:
        low, high = floats.min(), floats.max()
        raise BadImage(f'{values.dtype} values from {low:g} to {high:g}; {expected}')
    return (floats * 255 + 0.5).astype(np.uint8)


def _channels_first(shape) -> str:
    first = len(shape) == 3 and shape[0] in (1, 3, 4)
    return ' (channels first? use .transpose(1, 2, 0))' if first else ''
