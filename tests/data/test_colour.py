"""colour.py: every mode and profile becomes sRGB; a broken profile loses no image."""

import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from rf_jax.data import image_ops
from rf_jax.data.records import BadImage

MANY = 10**6
# Reads TIFF of YCbCr and of premultiplied grey; Apache Beam asks for an older one.
PILLOW_13 = int(PIL.__version__.split('.')[0]) >= 13
SHOWN = (200, 90, 60)
# Colorants adapted to D50, from the published profiles (XYZ of red, green, blue).
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*values: float) -> bytes:
    return struct.pack(f'>{len(values)}i', *(round(value * 65536) for value in values))


def curve(value: float | tuple) -> bytes:
    if isinstance(value, tuple):
        return b'para\0\0\0\0' + struct.pack('>HH', 3, 0) + fixed(*value)
    return b'curv\0\0\0\0' + struct.pack('>IH', 1, round(value * 256))


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 4 profile, as specified: header, tag table, tags."""
    description = 'test'.encode('utf-16-be')
    text = b'mluc\0\0\0\0' + struct.pack('>II', 1, 12) + b'enUS'
    text += struct.pack('>II', len(description), 28) + description
    tags = {b'desc': text, b'wtpt': b'XYZ \0\0\0\0' + fixed(0.9642, 1, 0.8249)} | tags
    table, body, at = struct.pack('>I', len(tags)), b'', 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack('>II', at + len(body), len(data))
        body += data + b'\0' * (-len(data) % 4)
    header = struct.pack(
        '>I4sI4s4s4s', at + len(body), b'lcms', 0x04300000, b'mntr', space, b'XYZ '
    )
    header += struct.pack('>6H', 2020, 1, 1, 0, 0, 0) + b'acsp' + bytes(28)
    header += fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b'\0') + table + body


def rgb_profile(colorants, transfer) -> bytes:
    tags = {n: b'XYZ \0\0\0\0' + fixed(*c) for n, c in zip((b'rXYZ', b'gXYZ', b'bXYZ'), colorants)}
    return profile(b'RGB ', tags | dict.fromkeys((b'rTRC', b'gTRC', b'bTRC'), curve(transfer)))


ADOBE_RGB = rgb_profile(ADOBE, 563 / 256)
GREY_18 = profile(b'GRAY', {b'kTRC': curve(1.8)})


def encoded(image: Image.Image, format: str = 'PNG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def first(data: bytes) -> list[int]:
    return image_ops.read_rgb(data, MANY)[0, 0].astype(int).tolist()


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'TIFF', 'AVIF'])
@pytest.mark.parametrize(
    ('icc', 'expected'),
    [
        (ADOBE_RGB, (228, 90, 56)),
        (rgb_profile(P3, 2.2), (217, 80, 45)),
        (rgb_profile(P3, SRGB_CURVE), (216, 81, 49)),
    ],
    ids=['Adobe RGB', 'P3 of gamma 2.2', 'Display P3'],
)
def test_adobe_rgb_and_p3_become_srgb(format, icc, expected):
    options = {
        'WEBP': {'lossless': True},
        'JPEG': {'quality': 98},
        'AVIF': {'quality': 100, 'subsampling': '4:4:4'},
    }.get(format, {})
    data = encoded(Image.new('RGB', (16, 16), SHOWN), format, icc_profile=icc, **options)
    np.testing.assert_allclose(first(data), expected, atol=3)


def test_profiles_apply_to_palettes_and_transparent_images():
    solid = Image.new('RGB', (4, 4), SHOWN)
    palette = encoded(solid.quantize(4), icc_profile=ADOBE_RGB)
    np.testing.assert_allclose(first(palette), (228, 90, 56), atol=3)
    half = encoded(Image.new('RGBA', (4, 4), (*SHOWN, 128)), icc_profile=ADOBE_RGB)
    np.testing.assert_allclose(first(half), (241, 172, 155), atol=3)
    clear = encoded(solid, icc_profile=ADOBE_RGB, transparency=SHOWN)
    assert first(clear) == [255] * 3


def test_grey_profiles_are_applied():
    data = encoded(Image.new('L', (8, 8), 100), icc_profile=GREY_18)
    linear = (100 / 255) ** 1.8
    expected = 255 * (1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(first(data), [expected] * 3, atol=2)
    deep = Image.fromarray(np.full((8, 8), 100 * 257, np.uint16))
    np.testing.assert_allclose(first(encoded(deep, icc_profile=GREY_18)), [expected] * 3, atol=2)


def test_lab_images_are_read():
    srgb, lab = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
    image = ImageCms.profileToProfile(Image.new('RGB', (8, 8), SHOWN), srgb, lab, outputMode='LAB')
    np.testing.assert_allclose(first(encoded(image, 'TIFF')), SHOWN, atol=3)


def cmyk_profile() -> bytes:
    """An output profile whose table maps magenta ink to a grey in CIELAB and ignores the rest."""
    table = b''.join(
        struct.pack('>HHH', 0xFFFF * (1 - magenta), 0x8080, 0x8080)
        for cyan in (0, 1) for magenta in (0, 1) for yellow in (0, 1) for black in (0, 1)
    )  # fmt: skip
    ramp = struct.pack('>HH', 0, 0xFFFF)
    lut = b'mft2\0\0\0\0' + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += struct.pack('>HH', 2, 2) + 4 * ramp + table + 3 * ramp
    data = bytearray(profile(b'CMYK', {b'A2B0': lut, b'A2B1': lut}))
    data[12:16], data[20:24] = b'prtr', b'Lab '
    return bytes(data)


@pytest.mark.parametrize('format', ['JPEG', 'TIFF'])
def test_cmyk_goes_through_its_profile(format):
    options = {'quality': 98} if format == 'JPEG' else {}
    for ink, expected in (((255, 0, 255, 0), 255), ((0, 255, 0, 0), 0)):
        image = Image.new('CMYK', (16, 16), ink)
        data = encoded(image, format, icc_profile=cmyk_profile(), **options)
        np.testing.assert_allclose(first(data), [expected] * 3, atol=4)


@pytest.mark.parametrize(
    'icc',
    [
        b'nonsense',
        ADOBE_RGB[:200],
        ADOBE_RGB[:128] + b'\xff' * 200,
        GREY_18,  # of another colour mode
        profile(b'RGB ', {}),
    ],
    ids=['nonsense', 'truncated', 'table', 'grey', 'empty'],
)
@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_a_broken_profile_leaves_the_image_unconverted(icc, format):
    options = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 98}}.get(format, {})
    data = encoded(Image.new('RGB', (16, 16), SHOWN), format, icc_profile=icc, **options)
    np.testing.assert_allclose(first(data), SHOWN, atol=2)


def with_chunk(data: bytes, name: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    chunk = struct.pack('>I', len(body)) + name + body
    return data[:33] + chunk + struct.pack('>I', zlib.crc32(name + body)) + data[33:]


@pytest.mark.parametrize(
    'body',
    [
        b'p\0\0' + zlib.compress(bytes(2 * 2**20)),  # larger than Pillow accepts
        b'p\0\7' + zlib.compress(ADOBE_RGB),  # an unknown compression
        b'p\0\0no zlib',
        b'p',
    ],
)
def test_a_profile_that_pillow_rejects_does_not_lose_the_image(body):
    data = with_chunk(encoded(Image.new('RGB', (4, 4), SHOWN)), b'iCCP', body)
    assert image_ops.header_size(data) == (4, 4)
    assert first(data) == list(SHOWN)


@pytest.mark.parametrize(
    'icc',
    [
        ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
        rgb_profile(SRGB, SRGB_CURVE),
    ],
    ids=['lcms', 'bytes'],
)
def test_srgb_profiles_change_no_bit(icc):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    read = image_ops.read_rgb(encoded(Image.fromarray(noise), icc_profile=icc), MANY)
    np.testing.assert_array_equal(read, noise)


def test_gamma_and_chromaticities_without_a_profile_are_not_used():
    data = with_chunk(encoded(Image.new('RGB', (4, 4), SHOWN)), b'gAMA', struct.pack('>I', 100000))
    assert first(data) == list(SHOWN)


def png(depth: int, kind: int, rows: list[bytes], width: int, *chunks: tuple[bytes, bytes]):
    """A PNG written by the specification, since Pillow writes few bit depths."""
    header = struct.pack('>IIBBBBB', width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b''.join(b'\0' + row for row in rows))
    parts = [(b'IHDR', header), *chunks, (b'IDAT', pixels), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
        for name, body in parts
    )


def test_16_bit_grey_with_transparency():
    row = struct.pack('>3H', 0, 128 * 257, 65535)
    see_through = png(16, 0, [row], 3, (b'tRNS', struct.pack('>H', 128 * 257)))
    assert image_ops.read_rgb(see_through, MANY)[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]
    with_alpha = png(16, 4, [struct.pack('>6H', 0, 65535, 0, 0, 128 * 257, 65535)], 3)
    assert image_ops.read_rgb(with_alpha, MANY)[0].tolist() == [[0] * 3, [255] * 3, [128] * 3]


@pytest.mark.parametrize(('depth', 'most'), [(1, 1), (2, 3), (4, 15)])
def test_transparent_grey_of_few_bits(depth, most):
    row = bytes([most << (8 - depth)])  # white, black
    data = png(depth, 0, [row], 2, (b'tRNS', struct.pack('>H', 0)))
    assert image_ops.read_rgb(data, MANY)[0].tolist() == [[255] * 3, [255] * 3]
    data = png(depth, 0, [row], 2)
    assert image_ops.read_rgb(data, MANY)[0].tolist() == [[255] * 3, [0] * 3]
    data = png(depth, 0, [bytes([(1 << (8 - depth)) & 255])], 2, (b'tRNS', struct.pack('>H', 1)))
    assert image_ops.read_rgb(data, MANY)[0].tolist() == [[255] * 3, [0] * 3]


def test_16_bit_rgb_with_a_transparent_colour():
    row = struct.pack('>6H', 200 * 257, 90 * 257, 60 * 257, 1000, 40000, 1000)
    see_through = struct.pack('>3H', 1000, 40000, 1000)
    read = image_ops.read_rgb(png(16, 2, [row], 2, (b'tRNS', see_through)), MANY)
    assert read[0].tolist() == [list(SHOWN), [255] * 3]


@pytest.mark.parametrize('compression', ['raw', 'tiff_lzw'])
def test_32_bit_tiff(compression):
    def read(values):
        data = encoded(Image.fromarray(values[None]), 'TIFF', compression=compression)
        return image_ops.read_rgb(data, MANY)[0, :, 0].tolist()

    assert read(np.array([0, 2**30, 2**31 - 1], np.int32)) == [0, 128, 255]
    assert read(np.array([0, 128 * 257, 65535], np.int32)) == [0, 128, 255]  # made from 16 bits
    assert read(np.array([0, 128, 255], np.int32)) == [0, 128, 255]  # made from 8 bits
    assert read(np.array([0, 0.5, 1], np.float32)) == [0, 128, 255]


def tiff(bits: int, format: int, photometric: int, pixels: bytes, width: int) -> bytes:
    """A grey TIFF of one strip, written by the specification."""
    tags = [(256, width), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8),
            (277, 1), (278, 1), (279, len(pixels)), (339, format)]  # fmt: skip
    at = 8 + len(pixels) + len(pixels) % 2
    directory = struct.pack('<H', len(tags))
    directory += b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags)
    header = b'II*\0' + struct.pack('<I', at)
    return header + pixels + b'\0' * (len(pixels) % 2) + directory + bytes(4)


@pytest.mark.parametrize(
    ('bits', 'format', 'photometric', 'pixels', 'expected'),
    [
        (32, 1, 1, struct.pack('<3I', 0, 2**31, 2**32 - 1), [0, 128, 255]),
        (16, 1, 0, struct.pack('<3H', 0, 128 * 257, 65535), [255, 127, 0]),  # white is zero
        (32, 3, 0, struct.pack('<3f', 0, 0.5, 1), [255, 127, 0]),
        (12, 1, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]), [0, 128, 255]),
        (16, 2, 1, struct.pack('<3h', 0, 16384, 32767), [0, 128, 255]),
    ],
    ids=['uint32', 'white is zero', 'float, white is zero', '12 bits', 'int16'],
)
def test_grey_tiffs_of_other_depths(bits, format, photometric, pixels, expected):
    read = image_ops.read_rgb(tiff(bits, format, photometric, pixels, 3), MANY)
    assert read[0, :, 0].tolist() == expected


@pytest.mark.parametrize('values', [[0, 300.5], [-0.5, 1], [0, np.nan], [0, np.inf]])
def test_floats_of_an_unknown_range_are_rejected_with_their_range(values):
    data = encoded(Image.fromarray(np.array([values], np.float32)), 'TIFF')
    with pytest.raises(BadImage, match=r'floating-point pixels range from .* not 0 to 1'):
        image_ops.read_rgb(data, MANY)


def test_alpha_of_each_kind():
    rgba = np.array([[[200, 90, 60, 255], [0, 0, 0, 0], [100, 45, 30, 128]]], np.uint8)
    read = image_ops.read_rgb(encoded(Image.fromarray(rgba, 'RGBA'), 'TIFF'), MANY)
    np.testing.assert_allclose(read[0], [SHOWN, (255,) * 3, (177, 150, 142)], atol=1)
    grey = np.array([[[100, 255], [50, 128]]], np.uint8)
    premultiplied = [('La', 177)] * PILLOW_13
    for mode, second in (('LA', 152), *premultiplied):
        image = Image.fromarray(grey, 'LA')
        data = encoded(image, 'TIFF')
        if mode == 'La':
            extra_samples = struct.pack('<HHIH', 338, 3, 1, 2)
            assert data.count(extra_samples) == 1
            data = data.replace(extra_samples, struct.pack('<HHIH', 338, 3, 1, 1))
            assert Image.open(io.BytesIO(data)).mode == 'La'
        read = image_ops.read_rgb(data, MANY)
        np.testing.assert_allclose(read[0, :, 0], [100, second], atol=1)


def test_ycbcr_and_inverted_cmyk():
    ycbcr = Image.new('RGB', (16, 16), SHOWN).convert('YCbCr')
    if PILLOW_13:
        np.testing.assert_allclose(first(encoded(ycbcr, 'TIFF')), SHOWN, atol=2)
    # Adobe stores inverted ink; Pillow's own JPEGs carry the Adobe marker too.
    data = encoded(Image.new('CMYK', (16, 16), (0, 255, 255, 0)), 'JPEG', quality=98)
    assert b'Adobe' in data
    np.testing.assert_allclose(first(data), (255, 0, 0), atol=3)


def test_text_in_a_png_is_not_a_profile():
    text = PngImagePlugin.PngInfo()
    text.add_text('Comment', 'iCCP')
    assert first(encoded(Image.new('RGB', (4, 4), SHOWN), pnginfo=text)) == list(SHOWN)
