"""images.py: every image becomes upright RGB or a BadImage; patches keep their 2x2 groups."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from rf_jax.data import contact_sheet, image_ops
from rf_jax.data.image_ops import BadImage
from rf_jax.data.resizing import Target

MANY = 10**8
NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


def encoded(image: Image.Image, format: str = 'PNG', **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(height: int, width: int) -> bytes:
    """A PNG header with a size, without pixels."""
    body = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    data = b'IDAT' + zlib.compress(b'')
    chunks = [
        struct.pack('>I', len(c) - 4) + c + struct.pack('>I', zlib.crc32(c)) for c in (body, data)
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(chunks)


def test_rgb_file_and_bytes_are_read_unchanged(tmp_path):
    data = encoded(Image.fromarray(NOISE))
    (tmp_path / 'a.png').write_bytes(data)
    for file in (data, tmp_path / 'a.png', str(tmp_path / 'a.png')):
        assert image_ops.header_size(file) == (24, 40)
        read = image_ops.read_rgb(file, MANY)
        assert read.dtype == np.uint8 and read.flags.writeable
        np.testing.assert_array_equal(read, NOISE)


def test_alpha_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (255, 0, 128)
    read = image_ops.read_rgb(encoded(Image.fromarray(rgba)), MANY)
    np.testing.assert_allclose(read[0], [[200, 0, 0], [255, 255, 255], [227, 127, 127]], atol=1)
    la = np.array([[[10, 255], [10, 0]]], np.uint8)
    read = image_ops.read_rgb(encoded(Image.fromarray(la, 'LA')), MANY)
    np.testing.assert_array_equal(read[0], [[10] * 3, [255] * 3])


def test_palettes_with_and_without_transparency():
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), 'P')
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    np.testing.assert_array_equal(image_ops.read_rgb(encoded(palette), MANY)[0], [red, green, blue])
    for transparency in (1, bytes([255, 0, 255])):
        data = encoded(palette, transparency=transparency)
        np.testing.assert_array_equal(image_ops.read_rgb(data, MANY)[0], [red, [255] * 3, blue])


def test_transparent_colour_of_an_rgb_image_is_white():
    data = encoded(Image.new('RGB', (2, 2), (1, 2, 3)), transparency=(1, 2, 3))
    assert (image_ops.read_rgb(data, MANY) == 255).all()


def test_cmyk():
    data = encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG', quality=95)
    np.testing.assert_allclose(image_ops.read_rgb(data, MANY)[0, 0], [255, 0, 0], atol=8)


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_are_scaled_not_clipped(format):
    grey = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    read = image_ops.read_rgb(encoded(Image.fromarray(grey), format), MANY)
    np.testing.assert_array_equal(read[0, :, 0], [0, 1, 128, 255])
    assert (read == read[:, :, :1]).all()


def test_grey_one_bit_and_one_pixel():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    read = image_ops.read_rgb(encoded(Image.fromarray(grey)), MANY)
    np.testing.assert_array_equal(read, np.stack([grey] * 3, axis=-1))
    bits = Image.fromarray(np.array([[0, 255]], np.uint8)).convert('1')
    np.testing.assert_array_equal(image_ops.read_rgb(encoded(bits), MANY)[0], [[0] * 3, [255] * 3])
    dot = encoded(Image.new('RGB', (1, 1), (9, 8, 7)))
    assert image_ops.read_rgb(dot, MANY).tolist() == [[[9, 8, 7]]]


@pytest.mark.parametrize('format', ['GIF', 'WEBP', 'PNG'])
def test_animations_give_their_first_frame(format):
    frames = [Image.new('RGB', (4, 4), colour) for colour in ('red', 'blue')]
    lossless = {'lossless': True} if format == 'WEBP' else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (image_ops.read_rgb(data, MANY) == [255, 0, 0]).all()


@pytest.mark.parametrize('format', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_turns_size_and_pixels(format, orientation):
    upright = NOISE[:6, :9]
    stored = {  # what a camera held that way stores
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {'lossless': True} if format == 'WEBP' else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    assert image_ops.header_size(data) == (6, 9)
    np.testing.assert_array_equal(image_ops.read_rgb(data, MANY), upright)


def test_broken_exif_is_ignored():
    data = encoded(Image.fromarray(NOISE), exif=b'Exif\0\0nonsense')
    np.testing.assert_array_equal(image_ops.read_rgb(data, MANY), NOISE)


@pytest.mark.parametrize('number', [1, 2, 5, 7, 12])  # byte, ascii, ratio, undefined, double
def test_an_orientation_of_a_wrong_type_is_none(number):
    value = {5: struct.pack('<II', 6, 1), 12: struct.pack('<d', 6)}.get(number, b'6\0\0\0')
    count = 2 if len(value) == 4 else 1
    place = value if len(value) == 4 else struct.pack('<I', 26)  # else after the directory
    entry = struct.pack('<HHI', 0x0112, number, count) + place
    directory = struct.pack('<H', 1) + entry + struct.pack('<I', 0)
    exif = b'Exif\0\0II*\0' + struct.pack('<I', 8) + directory + value
    data = encoded(Image.fromarray(NOISE), exif=exif)
    stored = Image.open(io.BytesIO(data)).getexif()[0x0112]
    assert not isinstance(stored, int) and stored
    assert image_ops.header_size(data) == (24, 40)
    np.testing.assert_array_equal(image_ops.read_rgb(data, MANY), NOISE)


@pytest.mark.parametrize('format', ['PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF'])
def test_truncated_images_are_bad(format):
    data = encoded(Image.fromarray(NOISE), format)
    for share in (0.1, 0.6):
        with pytest.raises(BadImage):
            image_ops.read_rgb(data[: int(share * len(data))], MANY)


def test_missing_and_foreign_files_are_bad(tmp_path):
    (tmp_path / 'text.png').write_text('not an image')
    (tmp_path / 'empty.png').write_bytes(b'')
    postscript = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n'
    floats = encoded(Image.fromarray(np.full((2, 2), 300, np.float32)), 'TIFF')
    with pytest.raises(BadImage, match='missing'):
        image_ops.header_size(tmp_path / 'none.png')
    with pytest.raises(BadImage, match='not an image'):
        image_ops.header_size(tmp_path / 'text.png')
    with pytest.raises(BadImage, match='raster'):
        image_ops.header_size(postscript)
    with pytest.raises(BadImage, match='range'):
        image_ops.read_rgb(floats, MANY)
    for file in (tmp_path / 'empty.png', tmp_path, 'a\0b', b''):
        with pytest.raises(BadImage):
            image_ops.header_size(file)


def test_enormous_images_are_rejected_before_decoding(monkeypatch):
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, 'load', lambda image: decoded.append(image))
    limit = Image.MAX_IMAGE_PIXELS
    data = png_header(9000, 9000)
    assert image_ops.header_size(data) == (9000, 9000)
    with pytest.raises(BadImage, match='9000 x 9000 is more than 64000000'):
        image_ops.read_rgb(data, 64_000_000)
    with pytest.raises(BadImage, match='Bomb'):  # beyond what Pillow itself opens
        image_ops.read_rgb(png_header(60_000, 60_000), 10**12)
    with pytest.raises(BadImage, match='Bomb'):
        image_ops.header_size(png_header(60_000, 60_000))
    assert not decoded
    assert limit == Image.MAX_IMAGE_PIXELS


def test_exactly_max_pixels_is_read():
    data = encoded(Image.fromarray(NOISE))
    assert image_ops.read_rgb(data, 24 * 40).shape == (24, 40, 3)
    with pytest.raises(BadImage):
        image_ops.read_rgb(data, 24 * 40 - 1)


@pytest.mark.parametrize(
    ('size', 'longest', 'unit', 'expected'),
    [
        ((64, 64), 64, 32, (64, 64)),
        ((20, 20), 64, 32, (64, 64)),  # enlarged
        ((480, 640), 256, 32, (192, 256)),
        ((640, 480), 256, 32, (256, 192)),
        ((300, 100), 100, 32, (96, 32)),  # longest is not a multiple of the unit
        ((1, 10_000), 256, 32, (32, 256)),  # at least one unit
        ((100, 138), 64, 32, (64, 64)),  # 1.38 is nearer to 1 than to 2, as a ratio
        ((100, 145), 64, 32, (32, 64)),  # 1.45 is nearer to 2
        ((1, 1), 32, 32, (32, 32)),
    ],
)
def test_target_size(size, longest, unit, expected):
    assert image_ops.target_size(*size, longest, unit) == expected


def test_target_size_rejects_impossible_sizes():
    with pytest.raises(ValueError, match=r'data\.sizes'):
        image_ops.target_size(10, 10, 16, 32)
    with pytest.raises(ValueError, match='at least one pixel'):
        image_ops.target_size(0, 10, 64, 32)


def test_resize():
    assert image_ops.resize(NOISE, 24, 40) is NOISE
    resized = image_ops.resize(NOISE, 12, 50)
    assert resized.shape == (12, 50, 3) and resized.dtype == np.uint8
    assert abs(resized.mean() - NOISE.mean()) < 3


def test_each_token_covers_four_patches():
    patch, height, width = 2, 8, 12
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows, columns, rows * width + columns], axis=-1)
    patches = image_ops.patchify(image, patch)
    assert patches.shape == (height * width // patch**2, patch * patch * 3)
    corners = patches.reshape(-1, patch, patch, 3)[:, 0, 0, :2]  # (row, column) of first pixels
    token = 4  # second row of tokens, second column
    assert corners[4 * token : 4 * token + 4].tolist() == [[4, 4], [4, 6], [6, 4], [6, 6]]
    assert corners[:5].tolist() == [[0, 0], [0, 2], [2, 0], [2, 2], [0, 4]]
    np.testing.assert_array_equal(patches[0].reshape(2, 2, 3), image[:2, :2])


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_unpatchify_inverts(dtype):
    image = np.random.default_rng(1).integers(0, 255, (32, 16, 3)).astype(dtype)
    patches = image_ops.patchify(image, 4)
    assert patches.dtype == dtype
    np.testing.assert_array_equal(image_ops.unpatchify(patches, 32, 16, 4), image)
    with pytest.raises(ValueError, match='not a multiple'):
        image_ops.patchify(image[:, :12], 4)


def test_grid_holds_every_image_and_caption():
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    blue = np.full((32, 64, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet.grid([red, blue, red], columns=2)
    assert sheet.dtype == np.uint8
    assert (sheet == [255, 0, 0]).all(-1).sum() == 2 * 128 * 128  # enlarged to be readable
    assert (sheet == [0, 0, 255]).all(-1).sum() == 64 * 128
    assert (sheet[0] == 255).all()  # white margin
    captioned = contact_sheet.grid([red, blue, red], 2, ['a', 'M' * 500, 'two\nlines'])
    assert captioned.shape[0] > sheet.shape[0] and captioned.shape[1] == sheet.shape[1]
    assert (captioned == 0).all(-1).any()
    # Long captions are truncated: the last column stays white beyond its cell.
    assert (captioned[:, -contact_sheet._GAP :] == 255).all()
    with pytest.raises(ValueError, match='1 captions for 3'):
        contact_sheet.grid([red, blue, red], 2, ['a'])


def test_a_contact_sheet_of_large_images_fits_a_screen():
    for count, side in ((48, 500), (8, 1024), (1, 4000), (4, 1600)):
        images = [np.full((side, side * 3 // 4, 3), 9, np.uint8)] * count
        sheet = contact_sheet.grid(images, 8, ['a caption of some words'] * count)
        assert max(sheet.shape) <= 1600
        assert (sheet == 9).all(-1).mean() > 0.5 or count == 1
    # If images would become too small, the sheet is larger.
    tall = contact_sheet.grid([np.zeros((64, 64, 3), np.uint8)] * 400, 4)
    assert tall.shape[1] < 600 and tall.shape[0] == 100 * (128 + 4) + 4


def test_images_of_all_sizes_have_similar_size_on_a_contact_sheet():
    sizes = [(500, 500), (64, 64), (32, 32), (300, 400)]
    images = [np.full((*size, 3), 10 * i, np.uint8) for i, size in enumerate(sizes)]
    sheet = contact_sheet.grid(images * 12, 8)
    areas = [(sheet == 10 * i).all(-1).sum() / 12 for i in range(len(sizes))]
    assert min(areas) > 0.7 * max(areas)


def test_a_long_caption_has_two_lines():
    image = [np.full((64, 64, 3), 255, np.uint8)]
    one, two = (contact_sheet.grid(image, 1, [text]) for text in ('word', 'word ' * 9))
    assert one.shape == two.shape

    def lines(sheet):
        dark = (sheet < 128).any((1, 2))
        return int((dark[1:] & ~dark[:-1]).sum())

    assert (lines(one), lines(two)) == (1, 2)


def photo(height, width):
    """Smooth noise of all scales, with sharp edges."""
    rng, found = np.random.default_rng(0), np.zeros((height, width, 3))
    for side in (4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        found += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / side**0.5
    found = 255 * (found - found.min()) / np.ptp(found)
    found[height // 3 : height // 2, width // 4 : width // 2] = (250, 20, 20)
    return found.astype(np.uint8)


@pytest.mark.parametrize('orientation', [1, 6])
def test_a_jpeg_is_decoded_at_a_fraction_that_stays_twice_as_large_as_needed(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(photo(640, 960)), 'JPEG', quality=95, exif=exif)
    whole = image_ops.read_rgb(data, MANY)
    for divisor, fraction in ((3.9, 1), (4, 2), (7.9, 2), (8, 4), (16, 8), (60, 8)):
        size = tuple(int(side / divisor) for side in whole.shape[:2])
        read, wanted = image_ops.read_rgb(data, MANY, Target(*size)), image_ops.resize(whole, *size)
        assert np.sqrt(((read.astype(int) - wanted) ** 2).mean()) < 2.1
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (960 // fraction, 640 // fraction))
            part = np.array(
                image.transpose(Image.Transpose.ROTATE_270) if orientation > 1 else image
            )
        assert part.shape[:2] == tuple(side // fraction for side in whole.shape[:2])
        np.testing.assert_array_equal(read, image_ops.resize(part, *size))


def test_resizing_while_reading_is_resizing_afterwards():
    large = encoded(Image.fromarray(photo(640, 960)), 'JPEG')
    for data in (encoded(Image.fromarray(NOISE)), encoded(Image.fromarray(NOISE), 'WEBP'), large):
        whole = image_ops.read_rgb(data, MANY)
        for size in ((24, 40), (7, 5), (300, 200)):
            if data is not large or size == (300, 200):  # no draft
                read = image_ops.read_rgb(data, MANY, Target(*size))
                np.testing.assert_array_equal(read, image_ops.resize(whole, *size))
    with pytest.raises(BadImage, match='more than'):
        image_ops.read_rgb(large, 640 * 960 - 1, Target(8, 8))
