"""Images of a prepared set: as small as asked, the same picture, and untouched where they fit."""

import io

import numpy as np
import pytest
from PIL import Image
from prepare_inputs import encoded, picture

from rf_jax.data import image_ops, resizing
from rf_jax.data.records import BadImage
from rf_jax.preparation import pictures


def decoded(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert('RGB')).astype(float)


@pytest.mark.parametrize('quality', [30, 95])
def test_a_jpeg_that_fits_is_kept_byte_for_byte(quality):
    data = encoded(picture(0), quality=quality)
    kept, size = pictures.fitted(data, 40, 'jpeg')
    assert kept is data and size == picture(0).shape[:2]


def test_a_turned_jpeg_is_kept_and_its_size_is_that_shown():
    image = Image.fromarray(picture(0)[:20, :30])
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, 'JPEG', exif=exif)
    kept, size = pictures.fitted(file.getvalue(), 40, 'jpeg')
    assert kept == file.getvalue() and size == (30, 20)
    small, size = pictures.fitted(file.getvalue(), 15, 'jpeg')
    assert size == (15, 10) == image_ops.header_size(small)
    upright = image_ops.resize(image_ops.read_rgb(kept, 10**6), 15, 10)
    assert abs(decoded(small) - upright).mean() < 4


@pytest.mark.parametrize('encoding', ['jpeg', 'webp'])
@pytest.mark.parametrize('name', ['PNG', 'JPEG', 'WEBP', 'BMP'])
def test_larger_images_are_resized_without_a_change_of_colour_or_ratio(name, encoding):
    pixels = np.asarray(Image.fromarray(picture(3)).resize((1200, 800)))
    made, size = pictures.fitted(encoded(pixels, name), 90, encoding)
    assert size == (60, 90) == image_ops.header_size(made)
    expected = image_ops.resize(pixels, 60, 90).astype(float)
    assert abs(decoded(made) - expected).mean() < 2.5
    assert Image.open(io.BytesIO(made)).format == pictures.ENCODINGS[encoding][1]


def test_another_resizer_takes_part():
    pytest.importorskip('cykooz_resizer')
    data = encoded(np.asarray(Image.fromarray(picture(3)).resize((1200, 800))), 'PNG')
    ours, _ = pictures.fitted(data, 90, 'jpeg')
    simd, size = pictures.fitted(data, 90, 'jpeg', resizing.simd)
    assert size == (60, 90) == image_ops.header_size(simd)
    assert simd != ours and abs(decoded(simd) - decoded(ours)).mean() < 1


def test_small_images_are_not_enlarged():
    made, size = pictures.fitted(encoded(picture(0), 'PNG'), 4000, 'jpeg')
    assert size == picture(0).shape[:2] == image_ops.header_size(made)
    assert abs(decoded(made) - picture(0)).mean() < 2


def test_a_much_larger_jpeg_is_decoded_at_a_part_of_its_size(monkeypatch):
    sizes = []
    whole = image_ops.upright_rgb

    def watched(image, max_pixels):
        sizes.append(image.size)
        return whole(image, max_pixels)

    monkeypatch.setattr(image_ops, 'upright_rgb', watched)
    pixels = np.asarray(Image.fromarray(picture(3)).resize((1600, 800)))
    pictures.fitted(encoded(pixels), 96, 'jpeg')
    pictures.fitted(encoded(pixels, 'PNG'), 96, 'jpeg')
    assert sizes == [(200, 100), (1600, 800)]


def test_transparency_is_white():
    rgba = np.zeros((20, 20, 4), np.uint8)
    made, _ = pictures.fitted(encoded(rgba, 'PNG'), 64, 'jpeg')
    assert (decoded(made) > 250).all()


def test_what_cannot_be_decoded_is_refused(monkeypatch):
    data = encoded(picture(0))
    for bad in (data[: len(data) // 2], b'', b'<html>', data[:-200] if len(data) > 900 else b'x'):
        with pytest.raises(BadImage):
            pictures.fitted(bad, 64, 'jpeg')
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 100)
    with pytest.raises(BadImage, match='more than 100 pixels'):
        pictures.fitted(data, 64, 'jpeg')
