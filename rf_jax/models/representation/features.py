"""Features of the EMA encoder by group of patches, from which kinds make their targets (paper,
section 3.1). No gradient flows here.

A group is the `pool` x `pool` patches that one representation token stands for.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import microbatches, quantizer
from rf_jax.models.vision_encoder import pool

Batch = Mapping[str, jax.Array]


def patch_features(model: nn.Module, ema: Any, batch: Batch) -> jax.Array:
    """Features of the images to be generated, float32 [B, P, Denc]."""
    return model.bind({'params': ema}).features(batch)


def group_features(config: ConfigDict, model: nn.Module, ema: Any, batch: Batch):
    """(unit features z float32 [B G, Denc] of the images to be generated, G groups per row; bool
    [B G], which of them are no padding).
    """
    c = config.model.representation
    z = patch_features(model, ema, batch)
    z = pool(z if c.quantizer.pool_first else quantizer.normalise(z), c.pool)
    valid = batch['pixel_weight'][:, :: c.pool**2] > 0
    return quantizer.normalise(z.reshape(-1, z.shape[-1])), valid.reshape(-1)


def group_features_by_part(config: ConfigDict, model: nn.Module, ema: Any, batch: Batch):
    """As `group_features`, with the encoder on one of the `optimizer.grad_accum_steps` parts of
    the rows at a time.
    """
    names = ('pixels', 'pixel_image', 'pixel_coords', 'pixel_counts', 'pixel_weight')

    def features(rows):
        z, valid = group_features(config, model, ema, rows)
        count = len(rows['pixels'])
        return z.reshape(count, -1, z.shape[-1]), valid.reshape(count, -1)

    read = {name: batch[name] for name in names}
    z, valid = microbatches.join(
        microbatches.map_parts(features, config.optimizer.grad_accum_steps, read)
    )
    return z.reshape(-1, z.shape[-1]), valid.reshape(-1)


def take(groups: jax.Array, index: jax.Array, missing: float) -> jax.Array:
    """Groups [B, G, ...] read at index int32 [B, R], `missing` where the index is -1.

    Batch entries `input_group` and `target_group` are such indices: the group whose token stands at
    a place, and the one that is predicted there.
    """
    where = index.reshape(*index.shape, *[1] * (groups.ndim - 2))
    read = jnp.take_along_axis(groups, jnp.maximum(where, 0), axis=1)
    return jnp.where(where < 0, missing, read)
