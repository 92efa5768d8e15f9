"""PNG files that record how they were made, and never overwrite another file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, PngImagePlugin

import rf_jax


def write(file: str | os.PathLike | BinaryIO, image: np.ndarray, text: Mapping[str, object]):
    """Writes uint8 [h, w, 3] with `text` as PNG text fields, which `PIL.Image.open(...).text`
    reads; values are written as `str` gives them. Raises OSError.
    """
    fields = PngImagePlugin.PngInfo()
    for name, value in {'Software': f'rf_jax {rf_jax.__version__}', **text}.items():
        fields.add_itxt(name, str(value))
    Image.fromarray(image).save(file, 'PNG', pnginfo=fields)


def write_new(folder: Path, stem: str, image: np.ndarray, text: Mapping[str, object]) -> Path:
    """As `write`, to `stem.png` or the first unused name of `stem-2.png`, `stem-3.png`, ...

    Two processes that write to one folder never get the same name. Raises OSError.
    """
    number = 1
    while True:
        path = folder / (f'{stem}-{number}.png' if number > 1 else f'{stem}.png')
        try:
            with open(path, 'xb') as file:
                write(file, image, text)
            return path
        except FileExistsError:
            number += 1
