"""Where the patches of a packed row are in their images, from the coordinates that rows carry."""

import jax
import jax.numpy as jnp

_SIDE = 1024  # patches along a side, at most: 16,384 px of patches of 16


def cells(image: jax.Array, coords: jax.Array, images: int) -> tuple[jax.Array, jax.Array]:
    """(row and column of each patch, rows and columns of its image), whole float32 [B, P, 2].

    image int32 [B, P] (-1 none), coords float32 [B, P, 2] in [-1, 1], as `data.batch` has them: of
    n rows, row i is at (2 i + 1) / n - 1. `images`: largest number of images in a row.
    """
    own = image[..., None] == jnp.arange(images, dtype=image.dtype)
    first = jnp.where(own[..., None], coords[:, :, None], 0.0).min(1)
    first = jnp.take_along_axis(first, jnp.maximum(image, 0)[..., None], 1)
    size = jnp.round(1 / (1 + first))
    return jnp.round((coords + 1) / 2 * size - 0.5), size


def neighbours(image: jax.Array, coords: jax.Array, images: int) -> jax.Array:
    """int32 [B, P, 3, 3]: index in the row of the patch above left, above, ... below right of each
    patch, in its image; P where there is none.
    """
    at, size = (x.astype(jnp.int32) for x in cells(image, coords, images))
    steps = jnp.arange(-1, 2)
    rows, columns = (at[..., i, None] + steps for i in (0, 1))
    inside = ((rows >= 0) & (rows < size[..., :1]))[..., :, None]
    inside &= ((columns >= 0) & (columns < size[..., 1:]))[..., None, :]
    inside &= (image >= 0)[..., None, None]
    base = image[..., None, None] * _SIDE
    wanted = (base + rows[..., :, None]) * _SIDE + columns[..., None, :]
    own = jnp.where(image >= 0, wanted[..., 1, 1], jnp.iinfo(jnp.int32).max)  # the centre is itself
    order = jnp.argsort(own, -1)
    found = jax.vmap(jnp.searchsorted)(jnp.take_along_axis(own, order, -1), wanted)
    found = jnp.minimum(found, image.shape[1] - 1)
    found = jnp.take_along_axis(order, found.reshape(len(image), -1), -1).reshape(found.shape)
    return jnp.where(inside, found, image.shape[1])
