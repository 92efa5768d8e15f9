"""JPEGs: the same pixels, and the same errors, by either decoder."""

import io

import numpy as np
import pytest
from PIL import Image
from test_colour import ADOBE_RGB
from test_image_ops import photo

from rf_jax.data import image_ops, jpeg
from rf_jax.data.records import BadImage
from rf_jax.data.resizing import Target

pytest.importorskip('simplejpeg')
PHOTO = photo(83, 131)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, 'JPEG', **options)
    return file.getvalue()


def read(data, *target):
    """Pixels, or what is wrong."""
    try:
        return image_ops.read_rgb(data, 10**6, *target)
    except BadImage as error:
        return str(error)


@pytest.fixture
def by_both(monkeypatch):
    """A function of a JPEG that gives what each decoder makes of it, and whether both decoded."""
    libraries, calls = jpeg._libraries(), []
    library = libraries[0]
    decode = library.decode_jpeg

    def counted(*given, **options):
        calls.append(given)
        return decode(*given, **options)

    monkeypatch.setattr(library, 'decode_jpeg', counted)

    def found(data, *target):
        calls.clear()
        monkeypatch.setattr(jpeg, '_libraries', lambda: libraries)
        ours = read(data, *target)
        monkeypatch.setattr(jpeg, '_libraries', tuple)
        return ours, read(data, *target), bool(calls)

    return found


@pytest.mark.parametrize(
    'options',
    [
        {'subsampling': 0},
        {'subsampling': 1},
        {'subsampling': 2},
        {'subsampling': 0, 'keep_rgb': True},
        {'subsampling': 2, 'progressive': True},
        {'subsampling': 1, 'quality': 20, 'restart_marker_blocks': 3},
    ],
)
def test_decoded_pixels_are_equal(by_both, options):
    for height, width in ((83, 131), (16, 16), (1, 1), (7, 40)):
        image = Image.fromarray(PHOTO[:height, :width])
        ours, pillows, both = by_both(encoded(image, **options))
        assert both
        np.testing.assert_array_equal(ours, pillows)


def test_only_what_needs_nothing_else_of_pillow_is_plain(monkeypatch):
    image = Image.fromarray(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = 6
    xmp = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    pair, png = io.BytesIO(), io.BytesIO()
    image.save(pair, 'MPO', save_all=True, append_images=[image])
    image.save(png, 'PNG')
    plain = encoded(image, comment=b'a comment', dpi=(72, 72), progressive=True)
    others = [
        *(
            encoded(image, exif=exif),
            encoded(image, xmp=xmp),
            encoded(image, icc_profile=ADOBE_RGB),
        ),
        *(encoded(image.convert('L')), encoded(image.convert('CMYK')), pair.getvalue()),
        *(encoded(image, keep_rgb=True, subsampling=0), png.getvalue(), b''),
        *(plain[:3], plain[:30], plain[: plain.index(b'\xff\xc2')]),
    ]
    assert read(others[1]).shape == (131, 83, 3)
    assert jpeg.plain_size(plain) == (83, 131)
    assert not any(map(jpeg.plain_size, others))
    monkeypatch.setattr(image_ops, 'opened', lambda _: pytest.fail('opened by Pillow'))
    assert read(plain).shape == (83, 131, 3) and read(plain).flags.writeable
    assert read(plain, Target(40, 24)).shape == (40, 24, 3)


def test_profiles_orientation_and_sizes_are_applied(by_both):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(PHOTO), exif=exif, icc_profile=ADOBE_RGB)
    assert (read(data) != read(encoded(Image.fromarray(PHOTO), exif=exif))).any()
    for target in ((), (Target(40, 24),), (Target(20, 12),)):
        ours, pillows, both = by_both(data, *target)
        assert both == (target != (Target(20, 12),))  # which Pillow decodes at a part of its size
        np.testing.assert_array_equal(ours, pillows)


@pytest.mark.parametrize('mode', ['L', 'CMYK'])
def test_grey_and_cmyk_are_left_to_pillow(by_both, mode):
    ours, pillows, both = by_both(encoded(Image.fromarray(PHOTO).convert(mode)))
    assert not both
    np.testing.assert_array_equal(ours, pillows)


def test_damaged_files_are_refused_or_read_alike(by_both):
    data, rng, refused = encoded(Image.fromarray(PHOTO)), np.random.default_rng(0), 0
    cut = [data[:at] for at in rng.integers(len(data) // 4, len(data), 20)]
    flipped = []
    for at, value in zip(rng.integers(0, len(data), 80), rng.integers(0, 256, 80)):
        flipped.append(bytearray(data))
        flipped[-1][at] = value
    for damaged in (*cut, *map(bytes, flipped), data + b'more'):
        ours, pillows, _ = by_both(damaged)
        refused += isinstance(pillows, str)
        assert isinstance(ours, str) == isinstance(pillows, str)
        np.testing.assert_array_equal(ours, pillows)
    assert refused > 20


def test_a_jpeg_that_does_not_fit_into_memory_is_a_bad_image(monkeypatch):
    def full(*given, **options):
        raise MemoryError

    monkeypatch.setattr(jpeg._libraries()[0], 'decode_jpeg', full)
    data = encoded(Image.fromarray(PHOTO))
    assert read(data).shape == PHOTO.shape, 'Pillow tries'
    monkeypatch.setattr(image_ops.colour, 'rgb_on_white', full)
    assert read(data) == '83 x 131 does not fit into memory'
