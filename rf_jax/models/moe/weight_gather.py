"""Sharded parameters within `shard_map`: gathered where they are used, gradients scattered back."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from rf_jax.runtime import sharding
from rf_jax.runtime.errors import require

Axes = tuple[tuple[str, ...], ...]  # mesh axes of each dimension, outermost first


def axes_of(path: str, shape: Sequence[int], kept: Sequence[str], mesh: Mesh, table) -> Axes:
    """Mesh axes of each dimension of a parameter by the table of the config.

    `kept`: for each dimension the axis along which it stays sharded while in use, or ''. Raises
    UserError where that axis does not come first, since a device's part would not be contiguous.
    """
    spec = (*sharding.spec(path, shape, mesh, table), *(None,) * len(shape))[: len(shape)]
    axes = tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec)
    for own, stays in zip(axes, kept):
        require(
            stays not in own or own[0] == stays,
            f'sharding: {path} is cut over {own}; name {stays!r} first, so that what a device '
            'keeps is contiguous',
        )
    return axes


def gathered(w: jax.Array, axes: Axes, kept: Sequence[str]) -> jax.Array:
    """`w` of all devices, whole but for the axes `kept`.

    Last dimension first: what few devices share grows before what many share. The transpose
    scatters the sum of the gradients, so each device receives only the part that it holds.
    """
    for dimension, others in reversed(list(enumerate(_others(axes, kept)))):
        if others:
            w = jax.lax.all_gather(w, others, axis=dimension, tiled=True)
    return w


def scattered(gradient: jax.Array, axes: Axes, kept: Sequence[str], summed: Sequence[str]):
    """The transpose of `gathered`, and the sum over those axes of `summed` that `axes` lacks."""
    for dimension, others in enumerate(_others(axes, kept)):
        if others:
            gradient = jax.lax.psum_scatter(
                gradient, others, scatter_dimension=dimension, tiled=True
            )
    rest = tuple(axis for axis in summed if not any(axis in own for own in axes))
    return jax.lax.psum(gradient, rest) if rest else gradient


def _others(axes: Axes, kept: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(axis for axis in own if axis != stays) for own, stays in zip(axes, kept)]
