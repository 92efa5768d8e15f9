"""Images: reading any file into RGB, resizing, patchifying, and PNG files with their origin."""

import contextlib
import io
import itertools
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

import rf_jax
from rf_jax.data import colour, file_kinds, jpeg, patch_grid, resizing
from rf_jax.data.records import BadImage
from rf_jax.data.resizing import Resizer, Target
from rf_jax.runtime import paths, storage

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
_DRAFT = 2  # changes what is resized as a JPEG quality of 88 in place of 95 does: 1.1 to 2.1 levels
_VECTOR_FORMATS = ('EPS', 'WMF')  # Pillow runs other programs to rasterise these


def header_size(file: str | Path | bytes) -> tuple[int, int]:
    """(height, width) in pixels as shown (EXIF orientation applied), from the header alone.

    `file` is a path or the encoded bytes. Raises BadImage.
    """
    with opened(file) as image:
        width, height = image.size
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def read_rgb(file: str | Path | bytes, max_pixels: int, target: Target | None = None) -> np.ndarray:
    """Decodes the first frame, upright, in sRGB and on white: uint8 [h, w, 3].

    `file`: a path or the encoded bytes. `target`: what it is resized to, here, read-only; a JPEG
    2 _DRAFT times as large is decoded at 1/2, 1/4 or 1/8. Raises BadImage, also for more than
    `max_pixels`.
    """
    plain = _plain(file, max_pixels, target) if isinstance(file, bytes) else None
    if plain is not None:
        return plain
    with opened(file) as image:
        return upright_rgb(image, max_pixels, target)


def _plain(data: bytes, max_pixels: int, target: Target | None) -> np.ndarray | None:
    """As read_rgb, for a JPEG that needs nothing else of Pillow; None for what is not one."""
    size = jpeg.plain_size(data)
    if not size or size[0] * size[1] > max_pixels:
        return None
    if target and min(size[0] // target.height, size[1] // target.width) >= 2 * _DRAFT:
        return None
    image = jpeg.as_stored(data)
    return None if image is None else _resized(image, target)


def _resized(image: Image.Image, target: Target | None) -> np.ndarray:
    if not target:
        return np.array(image)
    if image.size != (target.width, target.height):
        image = target.resizer(image, target.height, target.width)
    return np.asarray(image)  # read-only; np.array copies all pixels once more


def upright_rgb(image: Image.Image, max_pixels: int, target: Target | None = None) -> np.ndarray:
    """As read_rgb, for a Pillow image, whose pixels need not be loaded yet."""
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(f'{height} x {width} is more than {max_pixels} pixels')
    orientation = _orientation(image)
    if target and image.format == 'JPEG':
        rows, columns = target.height, target.width
        if orientation >= 5:
            rows, columns = columns, rows
        image.draft(None, (_DRAFT * columns, _DRAFT * rows))
    try:
        rgb = colour.rgb_on_white(jpeg.decoded(image))
    except BadImage:
        raise
    except MemoryError as error:
        raise BadImage(f'{height} x {width} does not fit into memory') from error
    except Exception as error:  # a broken file can make decoders raise anything
        reason = f'{type(error).__name__}: {error}'
        raise BadImage(
            f'the file is damaged or truncated ({reason}): copy or download it again'
        ) from error
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return _resized(rgb, target)


def opened(file: str | Path | bytes) -> Image.Image:
    """A Pillow image whose pixels are not loaded yet. Raises BadImage."""
    try:
        image = _first_open(file)
    except Exception as error:  # as above; DecompressionBombError is among them
        raise BadImage(_reason(file, error)) from error
    if image.format in _VECTOR_FORMATS:
        image.close()
        raise BadImage(f'{image.format} is not a raster image: save it as PNG')
    return image


def _first_open(file: str | Path | bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
    except (OSError, ValueError, SyntaxError):
        # Pillow rejects a PNG whose colour profile is broken or very large.
        head = _head(file)
        at = head.find(b'iCCP')
        if not head.startswith(b'\x89PNG') or at < 0:
            raise
        data = file if isinstance(file, bytes) else Path(file).read_bytes()
        behind = at + 8 + int.from_bytes(data[at - 4 : at])
        return Image.open(io.BytesIO(data[: at - 4] + data[behind:]))


def _orientation(image: Image.Image) -> int:
    if image.format == 'TIFF':
        return 1  # Pillow rotates these itself, size included
    try:
        # Not PNG's own method: it decodes the whole image to look for EXIF after the pixels.
        found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the image unusable
        return 1
    return found if isinstance(found, int) else 1  # stored as text, a fraction, ...


def _reason(file: str | Path | bytes, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        with contextlib.suppress(OSError):
            return f'the file is missing: a link to {Path(file).readlink()}, which is not there'
        return 'the file is missing'
    of_the_system = isinstance(error, OSError) and error.errno is not None
    if of_the_system or isinstance(error, Image.DecompressionBombError):
        return f'{type(error).__name__}: {error}'
    try:
        return file_kinds.explain(_head(file))
    except (OSError, ValueError):
        return f'{type(error).__name__}: {error}'


def _head(file: str | Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[: file_kinds.HEAD]
    with open(file, 'rb') as opened:
        return opened.read(file_kinds.HEAD)


def target_size(height: int, width: int, longest: int, unit: int) -> tuple[int, int]:
    """(height, width) to resize an image to, both multiples of `unit`.

    The longer side becomes the largest multiple of `unit` up to `longest`, whether that enlarges or
    reduces the image; the other becomes the multiple, at least one unit, that keeps the aspect
    ratio best. `unit` is 2 x patch, or 4 x patch for pool 4.
    """
    if min(height, width) < 1:
        raise ValueError(f'an image needs at least one pixel, not {height} x {width}')
    if longest < unit:
        raise ValueError(f'longest side {longest} (data.sizes) is below the unit of {unit} pixels')
    units = longest // unit
    short, long = sorted((height, width))
    exact = units * short / long
    candidates = {max(1, math.floor(exact)), max(1, math.ceil(exact))}
    other = min(sorted(candidates), key=lambda n: abs(math.log(n / exact)))
    if height >= width:
        return units * unit, other * unit
    return other * unit, units * unit


def resize(
    image: np.ndarray, height: int, width: int, resizer: Resizer = resizing.pillow
) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3]; the same array if the size matches."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(resizer(Image.fromarray(image), height, width))


def patchify(image: np.ndarray, patch: int, pool: int = 2) -> np.ndarray:
    """Cuts [h, w, 3] into patches [P, C] of any dtype, in the order of `patch_grid.patch_cells`.

    h and w are multiples of 2 x patch, or of 4 x patch for pool 4. C runs over (row, column,
    channel).
    """
    height, width, channels = image.shape
    rows, columns = _grid(height, width, patch, pool)
    patches = image.reshape(rows, patch, columns, patch, channels).swapaxes(1, 2)
    at = patch_grid.patch_cells(rows, columns, pool)
    return patches[at[:, 0], at[:, 1]].reshape(len(at), -1)


def unpatchify(
    patches: np.ndarray, height: int, width: int, patch: int, pool: int = 2
) -> np.ndarray:
    """The inverse of patchify: [P, C] -> [height, width, 3]."""
    rows, columns = _grid(height, width, patch, pool)
    at = patch_grid.patch_cells(rows, columns, pool)
    grid = np.empty((rows, columns, patch, patch, 3), patches.dtype)
    grid[at[:, 0], at[:, 1]] = patches.reshape(-1, patch, patch, 3)
    return grid.swapaxes(1, 2).reshape(height, width, 3)


def _grid(height: int, width: int, patch: int, pool: int) -> tuple[int, int]:
    unit = patch_grid.unit(pool) * patch
    if height % unit or width % unit:
        raise ValueError(
            f'{height} x {width} is not a multiple of {unit // patch} x patch = {unit}'
        )
    return height // patch, width // patch


def save_png(file: str | os.PathLike | BinaryIO, image: np.ndarray, text: Mapping[str, object]):
    """Writes uint8 [h, w, 3] with `text` as PNG text fields, which `PIL.Image.open(...).text`
    reads; values are written as `str` gives them. Raises OSError.
    """
    fields = PngImagePlugin.PngInfo()
    for name, value in {'Software': f'rf_jax {rf_jax.__version__}', **text}.items():
        fields.add_itxt(name, str(value))
    in_bucket = isinstance(file, str | os.PathLike) and not storage.is_local(file)
    target = io.BytesIO() if in_bucket else file
    Image.fromarray(image).save(target, 'PNG', pnginfo=fields)
    if in_bucket:
        storage.write(file, target.getvalue())


def save_new(
    folder: paths.AnyPath, stem: str, image: np.ndarray, text: Mapping[str, object]
) -> paths.AnyPath:
    """As `save_png`, to `stem.png` or the first unused name of `stem-2.png`, `stem-3.png`, ...

    Two processes that write to one folder never get the same name. Raises OSError.
    """
    data = io.BytesIO()
    save_png(data, image, text)
    for number in itertools.count(1):
        path = folder / (f'{stem}-{number}.png' if number > 1 else f'{stem}.png')
        if storage.create(path, data.getvalue()):
            return path
