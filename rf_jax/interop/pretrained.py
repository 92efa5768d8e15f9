"""A folder of pretrained weights, checked against the table of its family, and slices of it.

Everything is checked before the first byte of data is read: the files, each tensor of them (used,
or declared unused), each tensor of the table, shapes, dtypes, and config.json against our config.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rf_jax.interop import dinov3, qwen3, siglip2, table, wan
from rf_jax.interop.family import Family
from rf_jax.interop.files import Folder, raise_if
from rf_jax.runtime import paths
from rf_jax.runtime.errors import UserError, choose, require

PREFIX = 'hf:'  # of a folder in the layout of the Hugging Face hub, in `initialise_from`
# By model_type of config.json, or by _class_name, as diffusers has it.
FAMILIES: dict[str, Family] = {
    'qwen3': qwen3.dense,
    'qwen3_moe': qwen3.sparse,
    'dinov3_vit': dinov3.vit,
    'siglip2': siglip2.naflex,
    'siglip2_vision_model': siglip2.naflex,
    'AutoencoderKLWan': wan.vae,
}
# Parameters of ours that no pretrained model has.
NEW = (r'^connector/', r'^(representation_|patch_)', r'^codebook$')
FLOATS = {np.dtype(dtype): name for dtype, name in
          ((ml_dtypes.bfloat16, 'bfloat16'), (np.float16, 'float16'), (np.float32, 'float32'))
          }  # fmt: skip
_ROWS = 4096  # of two tensors compared at a time


class Pretrained:
    """The parameters of ours that a folder holds: `leaves` by path. Raises UserError."""

    def __init__(self, path: str | Path):
        self.folder = Folder(Path(path))
        kind = self.config.get('model_type', self.config.get('_class_name'))
        require(
            kind is not None,
            f'{path}/config.json has no model_type: it is no model of transformers or diffusers '
            '(a run goes out and in again with --to=orbax: of rf_jax.export)',
        )
        self.family = choose(f'{path}/config.json: model_type', kind, FAMILIES)
        names = self.folder.entries.keys()
        try:
            raise_if(self.family.refused(self.config), self.folder.path)
            self.sizes = self.family.sizes(self.config)
            wrong = {k: v for k, v in self.sizes.items() if type(v) is not int or v < 0}
            require(not wrong, f'{path}/config.json: sizes must be whole numbers, but give {wrong}')
            self.rows = self.family.rows(self.config, names)
            self.family.fields(self.config)
        except KeyError as error:
            raise UserError(f'{path}/config.json has no {error.args[0]!r}') from None
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f'{path}/config.json has a value of another type: {error}') from None
        raise_if(list(self._faults()), self.folder.path)
        self.leaves = table.leaves(self.rows, self.sizes)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.folder.config

    def _faults(self) -> Iterator[str]:
        """Differences of the files from the table and from config.json."""
        entries, wanted = self.folder.entries, {}
        for row in self.rows:
            wanted |= dict.fromkeys((name for _, name in row.names(self.sizes)),
                                    row.shape(self.sizes))  # fmt: skip
        for name, shape in wanted.items():
            if name not in entries:
                yield f'{name} {list(shape)} is missing'
            elif entries[name].shape != shape:
                has = list(entries[name].shape)
                yield f'{name} in {entries[name].file} is {has}, expected {list(shape)}'
        unused = re.compile('|'.join(self.family.unused) or r'(?!)')
        for name in sorted(entries.keys() - wanted.keys()):
            if not unused.search(name):
                yield f'{name} in {entries[name].file} is not known'
        dtype = self.config.get('dtype', self.config.get('torch_dtype'))
        for name in sorted(wanted.keys() & entries.keys()):
            has = FLOATS.get(entries[name].dtype, str(entries[name].dtype))
            if has not in FLOATS.values() or dtype not in (None, has):
                where = f'{name} in {entries[name].file}'
                yield f'{where} is {has}; config.json says {dtype or "nothing"}'

    def fields(self) -> dict[str, Any]:
        """{dotted field: value} of our config that the checkpoint fixes."""
        return self.family.fields(self.config)

    def check(self, config) -> None:
        """Raises UserError, with both values, for fields of our config that say otherwise.

        The size of the vocabulary is that of the tokenizer, and is compared with the parameters.
        """
        raise_if(mismatches(self.fields(), config), self.folder.path)

    def check_tied(self) -> None:
        """Raises UserError if tensors differ that config.json says are one. Reads them whole, a
        part at a time.
        """
        for first, second in self.family.same(self.config, self.folder.entries.keys()):
            a, b = (self.folder.tensor(name).view(np.uint8) for name in (first, second))
            equal = all(np.array_equal(a[i : i + _ROWS], b[i : i + _ROWS])
                        for i in range(0, len(a), _ROWS))  # fmt: skip
            require(
                equal,
                f'{self.folder.path}: {second} differs from {first}, but config.json says '
                'tie_word_embeddings; which of them is meant? Set it to false to use both',
            )

    def itemsize(self, path: str) -> int:
        """Bytes of a value of a parameter in its file."""
        name, _ = next(self.leaves[path].names())
        return self.folder.entries[name].dtype.itemsize

    def read(self, path: str, index: tuple[slice, ...]) -> np.ndarray:
        """float32 parameter at `index`, which reads only the slices that it is made of."""
        return self.leaves[path].read(index, self.folder.tensor, np.dtype(np.float32))


def mismatches(fields: Mapping[str, Any], config) -> list[str]:
    """What differs between our config and {dotted field: value}, with both values."""
    wrong = []
    for field, value in fields.items():
        *groups, name = field.split('.')
        # Older runs lack some fields, and have what these stand for.
        ours = functools.reduce(lambda c, group: c[group], groups, config).get(name, value)
        if _plain(ours) != value and not field.startswith('tokenizer.'):
            wrong.append(f'{field}={ours!r} must be {value!r}, as in config.json there')
    return wrong


def _plain(value: Any) -> Any:
    """Tuples in place of lists, which is how they come from JSON."""
    return tuple(value) if isinstance(value, list) else value


def config_fields(path: str | Path) -> dict[str, Any]:
    """{dotted field: value} that a config needs to start from a folder, for use in a recipe:
    `config.update_from_flattened_dict(config_fields(path))`; `~` is expanded. Raises UserError.
    """
    return Pretrained(paths.local(path, 'config_fields: path')).fields()
