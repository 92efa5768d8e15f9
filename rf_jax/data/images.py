"""Pictures: reading any file into RGB, resizing, cutting into patches, contact sheets."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rf_jax.data import cells

# EXIF tag 0x0112 -> what turns the stored pixels upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_VECTOR_FORMATS = ('EPS', 'WMF')  # Pillow hands these to other programs to draw
_MIN_CELL = 96  # pixels; a contact sheet enlarges smaller pictures
_GAP = 4  # white pixels around a cell
_FONT_SIZE = 11


class BadPicture(Exception):
    """A picture that cannot be used: missing, broken, not a picture, or too large."""


def header_size(file: str | Path | bytes) -> tuple[int, int]:
    """(height, width) in pixels as shown (EXIF orientation applied), from the header alone.

    `file` is a path or the encoded bytes. Raises BadPicture.
    """
    with _open(file) as image:
        width, height = image.size
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def read_rgb(file: str | Path | bytes, max_pixels: int) -> np.ndarray:
    """Decodes the first frame, upright and on white: uint8 [h, w, 3].

    `file` is a path or the encoded bytes. Raises BadPicture; a picture of more than `max_pixels`
    pixels is refused before it is decoded.
    """
    with _open(file) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise BadPicture(f'{height} x {width} is more than {max_pixels} pixels')
        orientation = _orientation(image)
        try:
            image.load()
            rgb = _to_rgb(image)
        except BadPicture:
            raise
        except Exception as error:  # decoders raise whatever a broken file leads them to
            raise BadPicture(_reason(error)) from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return np.array(rgb)


def _open(file: str | Path | bytes) -> Image.Image:
    try:
        image = Image.open(
            io.BytesIO(file) if isinstance(file, bytes) else os.path.expanduser(file)
        )
    except Exception as error:  # as above; DecompressionBombError is among them
        raise BadPicture(_reason(error)) from error
    if image.format in _VECTOR_FORMATS:
        image.close()
        raise BadPicture(f'{image.format} is not a raster picture')
    return image


def _orientation(image: Image.Image) -> int:
    if image.format == 'TIFF':
        return 1  # Pillow turns these by itself, size included
    try:
        # The base class: PNG's own method decodes the whole picture to look behind the pixels.
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the picture unusable
        return 1
    return found if isinstance(found, int) else 1  # stored as text, a fraction, ...


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'the file is missing'
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not a picture, or its header is broken'
    return f'{type(error).__name__}: {error}'


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'F':
        raise BadPicture('floating-point pixels have no known range')
    if image.mode.startswith('I'):
        # Pillow's convert() clips 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert('RGB')
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        return Image.alpha_composite(white, image).convert('RGB')
    return image.convert('RGB')


def fit(height: int, width: int, longest: int, unit: int) -> tuple[int, int]:
    """Size that a picture is resized to: (height, width), both multiples of `unit`.

    The longer side becomes the largest multiple of `unit` within `longest`, up or down; the other
    is rounded to the side whose aspect ratio is nearest, at least one unit. `unit` is 2 x patch.
    """
    if min(height, width) < 1:
        raise ValueError(f'a picture has at least one pixel, not {height} x {width}')
    if longest < unit:
        raise ValueError(f'longest side {longest} (data.sizes) is below 2 x data.patch = {unit}')
    units = longest // unit
    short, long = sorted((height, width))
    exact = units * short / long
    candidates = {max(1, math.floor(exact)), max(1, math.ceil(exact))}
    other = min(sorted(candidates), key=lambda n: abs(math.log(n / exact)))
    if height >= width:
        return units * unit, other * unit
    return other * unit, units * unit


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lanczos: uint8 [h, w, 3] -> uint8 [height, width, 3]; the same array if nothing changes."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


def patchify(image: np.ndarray, patch: int, pool: int = 2) -> np.ndarray:
    """Cuts [h, w, 3] into patches [P, C] of any dtype, in the order of `cells.patch_cells`.

    h and w are multiples of 2 x patch, or of 4 x patch for pool 4. C runs over (row, column,
    channel).
    """
    height, width, channels = image.shape
    rows, columns = _grid(height, width, patch, pool)
    cut = image.reshape(rows, patch, columns, patch, channels).swapaxes(1, 2)
    at = cells.patch_cells(rows, columns, pool)
    return cut[at[:, 0], at[:, 1]].reshape(len(at), -1)


def unpatchify(
    patches: np.ndarray, height: int, width: int, patch: int, pool: int = 2
) -> np.ndarray:
    """The inverse of patchify: [P, C] -> [height, width, 3]."""
    rows, columns = _grid(height, width, patch, pool)
    at = cells.patch_cells(rows, columns, pool)
    cut = np.empty((rows, columns, patch, patch, 3), patches.dtype)
    cut[at[:, 0], at[:, 1]] = patches.reshape(-1, patch, patch, 3)
    return cut.swapaxes(1, 2).reshape(height, width, 3)


def _grid(height: int, width: int, patch: int, pool: int) -> tuple[int, int]:
    unit = cells.unit(pool) * patch
    if height % unit or width % unit:
        raise ValueError(
            f'{height} x {width} is not a multiple of {unit // patch} x patch = {unit}'
        )
    return height // patch, width // patch


def grid(
    images: Sequence[np.ndarray], columns: int, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Contact sheet of uint8 [h, w, 3] pictures of any sizes on white: uint8 [H, W, 3].

    Small pictures are enlarged by one whole factor for the sheet; a caption is cut to its cell.
    """
    if len(images) == 0:
        raise ValueError('a contact sheet needs at least one picture')
    if captions is not None and len(captions) != len(images):
        raise ValueError(f'{len(captions)} captions for {len(images)} pictures')
    height = max(image.shape[0] for image in images)
    width = max(image.shape[1] for image in images)
    factor = max(1, math.ceil(_MIN_CELL / max(height, width)))
    cell_width = max(factor * width, _MIN_CELL)
    font = ImageFont.load_default(_FONT_SIZE)
    line = math.ceil(1.4 * _FONT_SIZE) if captions is not None else 0
    step_y, step_x = factor * height + line + _GAP, cell_width + _GAP
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = Image.new('RGB', (columns * step_x + _GAP, rows * step_y + _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        y, x = (i // columns) * step_y + _GAP, (i % columns) * step_x + _GAP
        enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
        left = (cell_width - enlarged.shape[1]) // 2
        sheet.paste(Image.fromarray(enlarged), (x + left, y))
        if captions is not None:
            text = _clip(captions[i], font, cell_width)
            draw.text((x, y + factor * height), text, fill='black', font=font)
    return np.array(sheet)


def _clip(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    text = ' '.join(text[:500].split())  # no cell shows more
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
