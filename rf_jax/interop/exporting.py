"""Exports our parameters as folders that transformers opens: the tables for reading, reversed.

The only arithmetic is rounding to the dtype of the original, so weights that were not trained come
out bit for bit as they went in.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rf_jax.interop import table, writing
from rf_jax.interop.files import raise_if
from rf_jax.interop.kept import Original
from rf_jax.interop.pretrained import FAMILIES, FLOATS, mismatches
from rf_jax.runtime.errors import UserError

# Where other splits and pools of experts have what the tables name.
ELSEWHERE = (
    (r'^backbone/layers/(attention|output)/', r'backbone/layers/understanding_\1/'),
    (r'^backbone/layers/ffn_norm/', 'backbone/layers/understanding/norm/'),
    (r'/understanding/(router|gate|up|down)$', r'/shared/\1'),
)
# By model.encoder.kind.
ENCODERS = {'dinov3': ('dinov3_vit',), 'siglip2': ('siglip2_vision_model',)}
IMAGES = 'preprocessor_config.json'
_ROWS = 4096  # of two arrays compared at a time

Arrays = Mapping[str, Any]  # our parameters by path: shape, and slices as numpy


def described(config, vocabulary: int) -> dict[str, Original]:
    """{model_type: what to write a part of the model as} for a run without pretrained weights."""
    text = 'qwen3_moe' if config.model.backbone.ffn == 'moe' else 'qwen3'
    encoder = config.model.encoder.get('kind', 'dinov3')  # older runs have no kind
    found = {}
    for kind in (text, *ENCODERS.get(encoder, ())):
        family = FAMILIES[kind]
        images = family.describe_images
        made = {IMAGES: images(config)} if images else {}
        found[kind] = Original(family.describe(config, vocabulary), made=made)
    return found


def export(kind: str, original: Original, config, arrays: Arrays, folder: Path) -> None:
    """Writes one part of the model of a run into an empty folder, one tensor at a time.

    `arrays` are read in slices. Raises UserError if the model no longer is one of that kind.
    """
    family, c = FAMILIES[kind], original.config
    raise_if(mismatches(family.fields({**original.made.get(IMAGES, {}), **c}), config), folder)
    for path in original.files:
        shutil.copyfile(path, folder / path.name)
    if c.get('tie_word_embeddings') and not _tied(arrays):
        c = {**c, 'tie_word_embeddings': False}
    if c != original.config or not original.files:
        (folder / 'config.json').write_text(json.dumps(c, indent=2), encoding='utf-8')
    for name, content in original.made.items():
        (folder / name).write_text(json.dumps(content, indent=2), encoding='utf-8')
    specs: dict[str, writing.Spec] = {}
    parts: list[Iterator[tuple[str, np.ndarray]]] = []
    for path, leaf in table.leaves(family.rows(c, original.names()), family.sizes(c)).items():
        own = {
            name: writing.Spec(name, shape, _dtype(original, name)) for name, shape in leaf.names()
        }
        if not own.keys() <= specs.keys():  # a tied head is the embedding
            specs |= own
            parts.append(leaf.tensors(_found(path, leaf.shape, arrays)))
    kept = [((spec.name, tensor) for spec, tensor in original.tensors)]
    writing.write(
        folder,
        [*specs.values(), *(spec for spec, _ in original.tensors)],
        (tensor for part in (*parts, *kept) for _, tensor in part),
    )


def export_all(arrays: Arrays, folder: Path) -> None:
    """Writes the whole model under our own names, the arrays unchanged and one at a time."""
    specs = [writing.Spec(path, array.shape, array.dtype) for path, array in arrays.items()]
    writing.write(folder, specs, arrays.values())


def _found(path: str, shape: tuple[int, ...], arrays: Arrays) -> Any:
    there = path
    for pattern, replacement in (('', ''), *ELSEWHERE):
        there = re.sub(pattern, replacement, path)
        if there in arrays:
            break
    has = arrays[there].shape if there in arrays else 'absent'
    if has != shape:
        raise UserError(f'{path} is {has}, expected {shape}: this model cannot be exported as such')
    return arrays[there]


def _tied(arrays: Arrays) -> bool:
    """Whether the head still equals the embedding, a part at a time."""
    embedding, head = arrays['text_embed/table'], arrays['text_head/kernel']
    rows = embedding.shape[0]
    parts = (slice(i, min(i + _ROWS, rows)) for i in range(0, rows, _ROWS))
    return all(np.array_equal(embedding[part], head[:, part].T) for part in parts)


def _dtype(original: Original, name: str) -> np.dtype:
    """Of a tensor of the original."""
    c = original.config
    stated = c.get('dtype', c.get('torch_dtype')) or original.dtypes.get(name, 'float32')
    return next(dtype for dtype, known in FLOATS.items() if known == stated)
