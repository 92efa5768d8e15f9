"""Sharded parameters within `shard_map`: gathered for use, gradients scattered back."""

from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from rf_jax.runtime import sharding
from rf_jax.runtime.errors import require

Axes = tuple[tuple[str, ...], ...]  # mesh axes of each dimension, outermost first


def axes_of(path: str, shape: Sequence[int], kept: Sequence[str], mesh: Mesh, table) -> Axes:
    """Mesh axes of each dimension of a parameter, by the table of the config.

    `kept`: for each dimension, the axis along which it stays sharded in use, or ''. Raises
    UserError if that axis does not come first, since the part of a device would not be contiguous.
    """
    spec = (*sharding.spec(path, shape, mesh, table), *(None,) * len(shape))[: len(shape)]
    axes = tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in spec)
    for own, stays in zip(axes, kept):
        require(
            stays not in own or own[0] == stays,
            f'sharding: {path} is sharded over {own}; name {stays!r} first, so that the part of a '
            'device is contiguous',
        )
    return axes


def gathered(w: jax.Array, axes: Axes, kept: Sequence[str]) -> jax.Array:
    """`w` gathered from all devices, along all axes except `kept`.

    Last dimension first: parts shared by few devices grow before those shared by many. The
    transpose scatters the sum of the gradients, so each device receives only its own part.
    """
    for dimension, others in reversed(list(enumerate(_others(axes, kept)))):
        if others:
            w = jax.lax.all_gather(w, others, axis=dimension, tiled=True)
    return w


def scattered(gradient: jax.Array, axes: Axes, kept: Sequence[str], summed: Sequence[str]):
    """The transpose of `gathered`, and the sum over axes of `summed` that are not in `axes`."""
    for dimension, others in enumerate(_others(axes, kept)):
        if others:
            gradient = jax.lax.psum_scatter(
                gradient, others, scatter_dimension=dimension, tiled=True
            )
    rest = tuple(axis for axis in summed if not any(axis in own for own in axes))
    return jax.lax.psum(gradient, rest) if rest else gradient


def _others(axes: Axes, kept: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(axis for axis in own if axis != stays) for own, stays in zip(axes, kept)]
