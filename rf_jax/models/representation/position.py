"""The learned 2D position of a representation token."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.layers import Table


def learned_position(model: ConfigDict, cells: jax.Array) -> jax.Array:
    """A row of a table of `position_grid` x `position_grid` positions; the pipeline refuses larger
    images. Called within a module, whose parameter is `place/table`.

    cells int32 [B, R, 2] (-1: none, zeros there) -> [B, R, D].
    """
    side, width = model.representation.position_grid, model.backbone.width
    cell = jnp.clip(cells, 0, side - 1)
    place = Table(side**2, width, name='place')(cell[..., 0] * side + cell[..., 1])
    return jnp.where(cells[..., :1] >= 0, place, 0.0)
