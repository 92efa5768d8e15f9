"""Features of whole images under the vision encoder of a run, to compare two images by."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rf_jax.data import image_ops, layout
from rf_jax.generation.sampler import Sampler
from rf_jax.models import quantizer


class Encoder:
    """The vision encoder of a sampler's model with these parameters, frozen."""

    def __init__(self, sampler: Sampler, params: Any):
        self.sampler, self.params = sampler, params
        self._features = sampler.placement.jit(self._of_batch)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, D], unit vectors: the unit features of all patches of an image, one after the
        other, so that their scalar product compares place by place. `images`: uint8 [h, w, 3] of
        one size, in whole vision tokens.
        """
        patch, (height, width) = self.sampler.config.data.patch_size, images[0].shape[:2]
        rows = []
        for image in images:
            pixels = image_ops.patchify(image, patch, 2)
            rows.append([[layout.Pixels(height // patch, width // patch, pixels)]])
        count = self.sampler.placement.full(len(rows))
        rows += rows[:1] * (count - len(rows))
        capacity = dict(zip(layout.SIZES, layout.size(rows[0][0]).tolist()))
        batch = layout.make_batch(rows, capacity, self.sampler.model.channels)
        found = self._features(self.params, self.sampler.placement.inputs(batch))
        return np.asarray(found)[: len(images)]

    def _of_batch(self, params, batch):
        patches = quantizer.normalise(self.sampler.model.bind({'params': params}).features(batch))
        return quantizer.normalise(patches.reshape(len(patches), -1))
