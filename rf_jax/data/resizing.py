"""Lanczos resizing by Pillow, or by vector instructions (`data.resizer`).

Both resize rows and columns in turn and round to 8 bits in between, but begin with different ones.
They are equally near to the exact filter (0.30 to 0.39 of 255 levels, rms;
tests/data/test_resizing.py), and differ visibly only where it overshoots black or white.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from rf_jax.runtime.errors import UserError

Resizer = Callable[[Image.Image, int, int], Image.Image]  # of mode RGB, to a height and a width


def pillow(image: Image.Image, height: int, width: int) -> Image.Image:
    """Equal on every machine."""
    return image.resize((width, height), Image.Resampling.LANCZOS)


def simd(image: Image.Image, height: int, width: int) -> Image.Image:
    """By cykooz-resizer, in a quarter of the time; raises UserError where it is not installed.

    Equal with each set of vector instructions, and without any.
    """
    library, options = _cykooz()
    found = Image.new('RGB', (width, height))
    library.Resizer().resize_pil(image, found, options)
    return found


BY_NAME = {'pillow': pillow, 'simd': simd}  # of data.resizer


@dataclass(frozen=True)
class Target:
    """What an image is resized to, in pixels."""

    height: int
    width: int
    resizer: Resizer = pillow


def named(name: str) -> Resizer:
    """Raises UserError for an unknown name, or one whose library is not installed."""
    if name not in BY_NAME:
        raise UserError(f'data.resizer={name!r} is unknown; known: {", ".join(BY_NAME)}')
    BY_NAME[name](Image.new('RGB', (2, 2)), 1, 1)
    return BY_NAME[name]


@functools.cache
def _cykooz():
    try:
        import cykooz_resizer as library
    except ImportError as error:
        raise UserError(
            f"the resizer 'simd' needs cykooz-resizer ({error}): pip install '.[simd]', or choose "
            "'pillow' (data.resizer; --resizer of prepare)"
        ) from error
    lanczos = library.ResizeAlg.convolution(library.FilterType.lanczos3)
    return library, library.ResizeOptions(resize_alg=lanczos, use_alpha=False)
