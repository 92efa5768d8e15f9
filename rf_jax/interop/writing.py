"""Writing safetensors files piece by piece: the header first, as shapes are known."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rf_jax.interop.files import DTYPES, INDEX, SINGLE

PIECE = 100_000_000  # bytes of a tensor that are in memory at a time
LIMIT = 2_000_000_000  # bytes of a file, unless one tensor has more
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def divided(specs: Iterable[Spec], limit: int = LIMIT) -> dict[str, list[Spec]]:
    """The tensors of each file, in order, by the names of the Hugging Face hub."""
    files: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if files[-1] and size + spec.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(spec)
        size += spec.nbytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {f'model-{i:05}-of-{len(files):05}.safetensors': own for i, own in enumerate(files, 1)}


def header(specs: Iterable[Spec]) -> bytes:
    """The beginning of a file with these tensors, up to its data."""
    content: dict = {'__metadata__': {'format': 'pt'}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.nbytes
        content[spec.name] = {'dtype': NAMES[spec.dtype], 'shape': list(spec.shape),
                              'data_offsets': [start, end]}  # fmt: skip
    text = json.dumps(content, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # so that the data is aligned
    return len(text).to_bytes(8, 'little') + text


def index(files: Mapping[str, Iterable[Spec]]) -> str:
    """The content of the index of these files."""
    places = {spec.name: name for name, specs in files.items() for spec in specs}
    total = sum(spec.nbytes for specs in files.values() for spec in specs)
    return json.dumps({'metadata': {'total_size': total}, 'weight_map': places}, indent=2)


def write(
    folder: Path,
    specs: Iterable[Spec],
    tensors: Iterable[Any],
    limit: int = LIMIT,
) -> None:
    """Writes `tensors`, which come in the order of `specs`, into files of at most `limit` bytes.

    A tensor is a numpy array, or has `shape`, `dtype` and slices that are numpy arrays.
    """
    files, coming = divided(specs, limit), iter(tensors)
    for name, own in files.items():
        with (folder / name).open('wb') as file:
            file.write(header(own))
            for spec in own:
                tensor = next(coming)
                if tensor.shape != spec.shape:
                    raise ValueError(f'{spec.name}: {tensor.shape}, expected {spec.shape}')
                for piece in _pieces(tensor):
                    file.write(np.ascontiguousarray(piece, spec.dtype).view(np.uint8).data)
    if len(files) > 1:
        (folder / INDEX).write_text(index(files), encoding='utf-8')


def _pieces(tensor: Any) -> Iterator[np.ndarray]:
    """The tensor in parts of its first axis, of at least one row."""
    if not tensor.shape:
        yield tensor[...]
        return
    count, *rest = tensor.shape
    step = max(PIECE // max(math.prod(rest) * tensor.dtype.itemsize, 1), 1)
    for start in range(0, count, step):
        yield tensor[start : min(start + step, count)]
