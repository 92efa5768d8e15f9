"""A downloaded folder of safetensors files, checked before any of its data is read.

Format: 8 bytes, the length of the header, little-endian; the header, JSON with dtype, shape and
data_offsets by name; the data, row-major (https://huggingface.co/docs/safetensors). Several files
have an index, model.safetensors.index.json, with the file of each tensor.
"""

import json
import math
import mmap
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rf_jax.runtime.errors import UserError, require

SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
DIFFUSERS = 'diffusion_pytorch_'  # before these names, in folders of diffusers
PICKLES = ('.bin', '.pth', '.pt', '.pkl', '.ckpt')
LONGEST_HEADER = 100_000_000  # as the reference implementation
DTYPES = {
    'F64': np.dtype(np.float64),
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F8_E4M3': np.dtype(ml_dtypes.float8_e4m3fn),
    'F8_E5M2': np.dtype(ml_dtypes.float8_e5m2),
    'I64': np.dtype(np.int64),
    'I32': np.dtype(np.int32),
    'I16': np.dtype(np.int16),
    'I8': np.dtype(np.int8),
    'U8': np.dtype(np.uint8),
    'BOOL': np.dtype(np.bool_),
}
POINTER = b'version https://git-lfs'  # what git leaves of a large file without its extension LFS
_DANGLING = 'is a link to a file that is not there: copy folders of a cache with cp -rL'
SHOWN = 10  # most faults in an error message


class Entry(NamedTuple):
    """Where a tensor is: the name of its file, and its first byte there."""

    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Folder:
    """The tensors of a folder: `entries` by name; `config`: its config.json, and what else its
    preprocessor_config.json has, if there is one.

    Raises UserError that lists what is wrong with its files: missing, extra or truncated ones,
    tensors that the index places elsewhere, pickles, which are never opened.
    """

    def __init__(self, path: Path):
        require(path.is_dir(), _no_folder(path))
        self.path = path
        try:
            _refuse_pickles(path)
            images = path / 'preprocessor_config.json'
            self.config = (_json(images) if images.exists() else {}) | _json(path / 'config.json')
            self.entries, faults = _entries(path)
        except OSError as error:
            raise UserError(f'{path} cannot be read: {error.strerror}') from None
        raise_if(faults, path)
        self._latest: mmap.mmap | None = None  # the file that was read last

    @cached_property
    def _data(self) -> dict[str, mmap.mmap]:
        """Each file, mapped into memory: pages are read when they are touched."""
        found = {}
        for name in sorted({entry.file for entry in self.entries.values()}):
            with open(self.path / name, 'rb') as file:
                found[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return found

    def tensor(self, name: str) -> np.ndarray:
        """A tensor as a read-only view of its file: slicing it reads no more than the slice.

        The pages of the tensor before it are released; its views stay valid.
        """
        entry = self.entries[name]
        data = self._data[entry.file]
        if self._latest:
            self._latest.madvise(mmap.MADV_DONTNEED)
        self._latest = data
        values = np.frombuffer(data, np.uint8, entry.nbytes, entry.start)
        return values.view(entry.dtype).reshape(entry.shape)


def raise_if(faults: list[str], path: Path) -> None:
    """Raises one UserError with all faults of a folder, unless there are none."""
    if faults:
        rest = f'; and {len(faults) - SHOWN} more' if len(faults) > SHOWN else ''
        text = '; '.join(faults[:SHOWN])
        raise UserError(f'{path} cannot be used ({len(faults)}): {text}{rest}')


def _no_folder(path: Path) -> str:
    """What is wrong with a path that is no folder, as it was given."""
    if path.exists():
        return f'{path} is a file; give the folder of downloaded weights'
    fault = f'{path.absolute()} does not exist; give the folder of downloaded weights'
    if len(path.parts) != 2 or path.is_absolute():
        return fault
    return f'{fault} (a model of the hub: hf download {path} --local-dir {path.name})'


def _refuse_pickles(path: Path) -> None:
    """Opening a pickle can run any code, and which of two copies of the weights counts would be a
    guess.
    """
    found = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    require(
        not found,
        f'{path} holds pickles, which are never opened: {", ".join(found[:SHOWN])}. Move them '
        'away; if the weights are in them alone, save the model as safetensors first',
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise UserError(_missing(path)) from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read: {type(error).__name__}: {error}') from None
    require(isinstance(found, dict), f'{path}: expected a JSON object')
    return found


def _missing(path: Path) -> str:
    """Why a file may be missing: of a pipeline or a cache, a folder below is the one to give."""
    if path.is_symlink():
        return f'{path} {_DANGLING}'
    fault = f'{path.parent} has no {path.name}'
    below = [file for depth in ('*', '*/*') for file in path.parent.glob(f'{depth}/{path.name}')]
    if not below:
        return f'{fault}: is the download complete?'
    folders = ', '.join(str(file.parent) for file in sorted(below)[:SHOWN])
    return f'{fault}; give a folder that has one: {folders}'


def _entries(path: Path) -> tuple[dict[str, Entry], list[str]]:
    """({name: entry} of all files, faults)."""
    there = {file.name for file in path.glob('*.safetensors')}
    prefix = DIFFUSERS if any(path.glob(f'{DIFFUSERS}*')) else ''
    single, listing = prefix + SINGLE, prefix + INDEX
    index = _json(path / listing).get('weight_map') if (path / listing).exists() else None
    require(index is None or isinstance(index, dict), f'{path / listing} has no weight_map')
    wanted = {single} if index is None else set(index.values())
    if index is None and not there:
        return {}, [f'neither {single} nor {listing} is there: is the download complete?']
    source = 'without an index' if index is None else f'of {listing}'
    faults = [f'{name} ({source}) is missing' for name in sorted(wanted - there)]
    faults += [f'{name} is not a file {source}: left from another download?'
               for name in sorted(there - wanted)]  # fmt: skip
    entries: dict[str, Entry] = {}
    for name in sorted(there & wanted):
        try:
            for tensor, entry in _header(path / name):
                if tensor in entries:
                    faults.append(f'{tensor} is in {entries[tensor].file} and in {name}')
                entries[tensor] = entry
        except KeyError as error:
            faults.append(f'{name} has a header without {error}')
        except FileNotFoundError:
            faults.append(f'{name} {_DANGLING}')
        except OSError as error:
            faults.append(f'{name} cannot be read: {error.strerror}')
        except (ValueError, TypeError) as error:
            faults.append(f'{name} {error}')
    return entries, faults or _misplaced(entries, index, listing)


def _misplaced(
    entries: Mapping[str, Entry], index: Mapping[str, str] | None, listing: str
) -> list[str]:
    """Differences of the files from their index, if they have one."""
    if index is None:
        return []
    faults = []
    for name in sorted(entries.keys() | index.keys()):
        file = entries[name].file if name in entries else 'no file'
        if file != index.get(name):
            faults.append(f'{name}: {listing} says {index.get(name, "nothing")}, it is in {file}')
    return faults


def _header(path: Path) -> Iterator[tuple[str, Entry]]:
    """(name, entry) of the tensors of one file. Raises ValueError."""
    size = path.stat().st_size
    with path.open('rb') as file:
        if file.read(len(POINTER)) == POINTER:
            raise ValueError('is a pointer of Git LFS in place of the file: run git lfs pull there')
        file.seek(0)
        length = int.from_bytes(file.read(8), 'little')
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise ValueError(f'is truncated, or no safetensors file ({size:,} bytes)')
        header = json.loads(file.read(length))
    end = 0
    for name, value in header.items():
        if name == '__metadata__':
            continue
        first, last = value['data_offsets']
        if value['dtype'] not in DTYPES:
            raise ValueError(f'has {name} in the unknown dtype {value["dtype"]}')
        entry = Entry(path.name, DTYPES[value['dtype']], tuple(value['shape']), 8 + length + first)
        if last - first != entry.nbytes:
            raise ValueError(f'has {last - first:,} bytes of {name}, expected {entry.nbytes:,}')
        end = max(end, last)
        yield name, entry
    if size != 8 + length + end:
        raise ValueError(f'has {size:,} bytes, expected {8 + length + end:,}: it is damaged')
