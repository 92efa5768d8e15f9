"""arrays.py: unambiguous images are accepted, the rest is rejected in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from rf_jax.data import arrays
from rf_jax.runtime.errors import UserError

MANY = 10**6
RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
RGB[0, 0], RGB[-1, -1] = 0, 255
GREY = RGB[:, :, 0]
FLOATS = RGB.astype(np.float32) / 255


@pytest.mark.parametrize(
    ('image', 'expected'),
    [
        (RGB, RGB),
        (FLOATS, RGB),
        (FLOATS.astype(np.float64), RGB),
        (jnp.asarray(FLOATS), RGB),
        (RGB.astype(np.int64), RGB),
        (RGB.tolist(), RGB),
        (RGB[:, ::-1][:, ::-1], RGB),
        (GREY, np.stack([GREY] * 3, -1)),
        (GREY[:, :, None], np.stack([GREY] * 3, -1)),
        (FLOATS[:, :, 0], np.stack([GREY] * 3, -1)),
        (GREY > 127, np.stack([(GREY > 127) * 255] * 3, -1)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), np.stack([GREY] * 3, -1)),
    ],
    ids=[
        *('uint8', 'float32', 'float64', 'jax', 'int64', 'list', 'strides', 'grey', 'grey channel'),
        *('float grey', 'bool', 'Pillow', 'Pillow grey'),
    ],
)
def test_unambiguous_images_are_accepted(image, expected):
    (read,) = arrays.as_rgb([image], MANY)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


def test_bfloat16_is_accepted_to_its_precision():
    (read,) = arrays.as_rgb([jnp.asarray(FLOATS, jnp.bfloat16)], MANY)
    np.testing.assert_allclose(read.astype(int), RGB, atol=1)


def test_alpha_is_composited_on_white_as_for_files(tmp_path):
    rgba = np.dstack([RGB, np.full((5, 7), 0, np.uint8)])
    rgba[0, 0, 3] = 255
    rgba[0, 1, 3] = 128
    Image.fromarray(rgba).save(tmp_path / 'a.png')
    given = [rgba, rgba / np.float32(255), Image.fromarray(rgba), tmp_path / 'a.png',
             str(tmp_path / 'a.png'), (tmp_path / 'a.png').read_bytes()]  # fmt: skip
    read = arrays.as_rgb(given, MANY)
    assert read[0][0, 0].tolist() == RGB[0, 0].tolist() and (read[0][1:] == 255).all()
    for each in read:
        np.testing.assert_array_equal(each, read[0])


def test_a_pillow_image_is_turned_upright_and_not_modified(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / 'a.png', exif=exif)
    with Image.open(tmp_path / 'a.png') as image:
        (read,) = arrays.as_rgb([image], MANY)
        np.testing.assert_array_equal(read, np.rot90(RGB, -1))
        np.testing.assert_array_equal(np.asarray(image), RGB)


def test_a_single_image_and_a_batch_become_lists(tmp_path):
    Image.fromarray(RGB).save(tmp_path / 'a.png')
    for alone in (RGB, GREY, Image.fromarray(RGB), tmp_path / 'a.png', str(tmp_path / 'a.png')):
        assert len(arrays.as_rgb(alone, MANY)) == 1
    batch = arrays.as_rgb(np.stack([RGB, RGB[::-1]]), MANY)
    np.testing.assert_array_equal(batch, [RGB, RGB[::-1]])
    assert arrays.as_rgb([], MANY) == []


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        ([RGB, FLOATS * 255], r'image 2 of 2: float32 values from 0 to 255; expected .*\[0, 1\]'),
        ([FLOATS * 2 - 1], 'values from -1 to 1'),
        ([FLOATS * np.nan], 'nan or infinity'),
        ([RGB.astype(np.uint16) * 257], 'uint16 values from .* to 65535'),
        ([RGB.astype(np.int32) - 1], 'int32 values from -1 to'),
        ([RGB[None]], r'shape \(1, 5, 7, 3\), a batch: pass its images one by one'),
        ([RGB.transpose(2, 0, 1)], r'channels first\? use \.transpose\(1, 2, 0\)'),
        (RGB.transpose(2, 0, 1), r'channels first\? use \.transpose\(1, 2, 0\)'),
        ([RGB[:0]], 'no pixels'),
        ([np.zeros((4, 4), complex)], 'values of type complex128'),
        ([np.array([['a', 'b']])], 'values of type <U1'),
        ([[[1, 2], [3]]], 'list is not an array'),
        ([None], r'shape \(\)'),
        (['none.png'], 'image 1 of 1: the file is missing'),
        ([np.zeros((2000, 2000), np.uint8)], '2000 x 2000 is more than 1000000 pixels'),
    ],
)
def test_other_inputs_are_rejected_in_one_line(images, message):
    with pytest.raises(UserError, match=message) as caught:
        arrays.as_rgb(images, MANY)
    assert '\n' not in str(caught.value)
