"""data/batch.py names every array of a batch, with the dtype and shape that it has."""

from typing import get_type_hints

import jax
import numpy as np
import pytest
from shrink import shrink

from configs import base
from rf_jax.data import layout
from rf_jax.data.batch import Batch, StepBatch
from rf_jax.runtime import mesh
from rf_jax.training import jitted, step

# All different, so that no letter stands for another.
CAPACITY = {'text': 7, 'vision': 3, 'representation': 5, 'pixels': 16,
            'vision_images': 2, 'pixel_images': 1}  # fmt: skip
LETTERS = {'B': 6, 'T': 7, 'Vn': 3, '4Vn': 12, 'R': 5, 'P': 16, 'L': 31, 'I_v': 2, 'I_p': 1,
           'C': 768, 'Z': 768, 'Denc': 32}  # fmt: skip


def documented(kind):
    """{name: ({dtypes}, {shapes})} of the annotations."""

    def shape(text):
        return tuple(LETTERS[x] if x in LETTERS else int(x) for x in text.split())

    hints = get_type_hints(kind, include_extras=True)
    return {
        name: ({*dtypes.split(' | ')}, {shape(text) for text in shapes.split('|')})
        for name, (dtypes, shapes) in ((n, hint.__metadata__) for n, hint in hints.items())
    }


def check(arrays, kind):
    wanted = documented(kind)
    for name, array in arrays.items():
        dtypes, shapes = wanted[name]
        assert array.dtype.name in dtypes and array.shape in shapes, name


def test_the_batch_of_the_layout():
    batch = layout.make_batch([[]] * 6, CAPACITY, LETTERS['C'])
    assert batch.keys() == documented(Batch).keys()
    check(batch, Batch)


@pytest.mark.parametrize(
    ('kind', 'own'),
    [
        ('forcing', {'code_targets'}),
        ('continuous', {'feature_targets'}),
        ('alignment', {'patch_features'}),
        ('none', set()),
    ],
)
def test_the_batch_of_a_step(kind, own):
    config = shrink(base.get_config())
    config.model.representation.kind = kind
    config.data.batch_size = 6
    config.data.capacity.update(CAPACITY)
    config.data.representation_tokens = kind in ('forcing', 'continuous')
    programs = jitted.build(config, 384, mesh.make_mesh(config.mesh, jax.devices()[:1]))
    row = layout.empty(CAPACITY, programs.model.channels)
    batch = {name: np.stack([array] * 6) for name, array in row.items()}

    def complete(state, batch):
        find = programs.model.kind.targets(config, programs.model)
        prepared, *_ = step.prepare(find, state, batch)
        return step.complete(config, programs.model, find, state, prepared)

    whole = jax.eval_shape(complete, programs.abstract, batch)
    variants = {'code_targets', 'feature_targets', 'patch_features', 'posterior_noise'}
    assert whole.keys() == documented(StepBatch).keys() - variants | own
    check(whole, StepBatch)
