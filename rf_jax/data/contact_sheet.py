"""Contact sheets: many images in one, with captions."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rf_jax.data import image_ops

_MIN_CELL = 96  # pixels; a contact sheet enlarges smaller images
_SCREEN = 1600  # pixels; the largest contact sheet, unless cells would be below the minimum
_GAP = 4  # white pixels around a cell
_FONT_SIZE = 12
_LINES = 2  # of a caption


def grid(
    images: Sequence[np.ndarray], columns: int, captions: Sequence[str] | None = None
) -> np.ndarray:
    """Contact sheet of uint8 [h, w, 3] images of any sizes on white: uint8 [H, W, 3].

    All cells have the same size, between 96 pixels and the size at which the sheet fits a screen.
    Smaller images are enlarged by an integer factor, larger ones reduced. A caption has two
    lines.
    """
    if len(images) == 0:
        raise ValueError('a contact sheet needs at least one image')
    if captions is not None and len(captions) != len(images):
        raise ValueError(f'{len(captions)} captions for {len(images)} images')
    columns = max(1, min(columns, len(images)))
    rows = math.ceil(len(images) / columns)
    line = math.ceil(1.3 * _FONT_SIZE)
    text_height = _LINES * line + _GAP if captions is not None else 0
    room = (_SCREEN - _GAP) // columns - _GAP, (_SCREEN - _GAP) // rows - text_height - _GAP
    shown = _scaled(images, max(_MIN_CELL, min(room)))
    height = max(image.shape[0] for image in shown)
    width = max(_MIN_CELL, *(image.shape[1] for image in shown))
    step_y, step_x = height + text_height + _GAP, width + _GAP
    sheet = Image.new('RGB', (columns * step_x + _GAP, rows * step_y + _GAP), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for i, image in enumerate(shown):
        y, x = (i // columns) * step_y + _GAP, (i % columns) * step_x + _GAP
        left, top = (width - image.shape[1]) // 2, height - image.shape[0]
        sheet.paste(Image.fromarray(image), (x + left, y + top))
        for n, text in enumerate(_wrapped(captions[i], font, width) if captions else ()):
            draw.text((x, y + height + n * line), text, fill='black', font=font)
    return np.array(sheet)


def _scaled(images: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Each no larger than `room`, and as near to the largest as integer factors allow."""
    longest = max(max(image.shape[:2]) for image in images)
    small = longest < _MIN_CELL
    target = math.ceil(_MIN_CELL / longest) * longest if small else min(longest, room)
    scaled = []
    for image in images:
        height, width = image.shape[:2]
        factor = target / max(height, width)
        if factor < 1:
            scaled.append(
                image_ops.resize(image, *(max(1, round(factor * n)) for n in (height, width)))
            )
        else:
            scaled.append(image.repeat(int(factor), axis=0).repeat(int(factor), axis=1))
    return scaled


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, the last one truncated."""
    words = text[:500].split()  # more never fits into a cell
    lines = []
    while words and len(lines) < _LINES - 1:
        fitting = len(words)
        while fitting > 1 and font.getlength(' '.join(words[:fitting])) > width:
            fitting -= 1
        lines.append(_truncate(' '.join(words[:fitting]), font, width))
        words = words[fitting:]
    return [*lines, _truncate(' '.join(words), font, width)]


def _truncate(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'
