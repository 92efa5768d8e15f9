"""Sharding of parameters by one ordered table of (regex on the parameter path, mesh axes); within
`shard_map`, parameters are gathered for use and their gradients scattered back.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rf_jax.runtime.errors import UserError, require

MAX_REPLICATED = 0.02  # share of the bytes that may be replicated when fsdp > 1
SHOWN = 10  # paths listed in an error message, at most

Axes = tuple[tuple[str, ...], ...]  # mesh axes of each trailing dimension, outermost first


def path_name(path: Sequence[Any]) -> str:
    """'/'-joined names of a key path: dictionary keys, fields, positions in tuples."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator='/')


def shardings(abstract_tree: Any, mesh: Mesh, rules: Iterable, small: str | None = None) -> Any:
    """Shardings of a tree of parameters, optimizer state or EMA.

    Args:
      abstract_tree: arrays or ShapeDtypeStructs.
      mesh: from make_mesh.
      rules: ordered (regex, axes) rows; the first match wins. The regex is searched in the
        '/'-joined path; anchor it at the end ('kernel$'), because optimizer state and EMA prefix
        the path of the parameter. `axes` has one entry per trailing dimension: None, an axis, or
        a tuple of axes. Leading dimensions without an entry are replicated, and so are scalars,
        which need no row. An axis that does not divide its dimension is dropped there.

    Returns:
      The same tree of NamedSharding.

    Raises:
      UserError: a row is invalid, no row matches a parameter, a row has more axes than a parameter
        has dimensions, or, when fsdp > 1, more than 2 % of the bytes are replicated, those of
        paths that match the regex `small` not counted.
    """
    table = [_parse(row, mesh) for row in rules]
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_tree)
    placed, uncovered, replicated = [], [], []
    for path, leaf in leaves:
        name, axes = path_name(path), PartitionSpec()
        if math.prod(leaf.shape) > 1:
            row = next((row for row in table if row[0].search(name)), None)
            if row is None:
                uncovered.append(f'{name} {list(leaf.shape)}')
            else:
                axes = _spec(name, leaf.shape, *row, mesh)
        sharding = NamedSharding(mesh, axes)
        if sharding.is_fully_replicated and not (small and re.search(small, name)):
            replicated.append((_bytes(leaf), name))
        placed.append(sharding)
    if uncovered:
        raise UserError(
            f'sharding: no row matches {_some(uncovered, limit=None)}; add a row (regex on the '
            'path, axes of its last dimensions).'
        )
    if mesh.shape.get('fsdp', 1) > 1:
        _check_replicated(replicated, sum(_bytes(leaf) for _, leaf in leaves))
    return jax.tree_util.tree_unflatten(structure, placed)


def spec(name: str, shape: Sequence[int], mesh: Mesh, rules: Iterable) -> PartitionSpec:
    """PartitionSpec of one parameter, as in `shardings`; raises UserError if no row matches it."""
    row = next((row for row in (_parse(row, mesh) for row in rules) if row[0].search(name)), None)
    if row is None:
        raise UserError(f'sharding: no row matches {name} {list(shape)}')
    return _spec(name, shape, *row, mesh)


def check_rows(rules: Iterable, mesh: Mesh) -> None:
    """Raises UserError for an invalid row."""
    for row in rules:
        _parse(row, mesh)


def _parse(row: Sequence, mesh: Mesh) -> tuple[re.Pattern, Axes]:
    """Validates one row of the table."""
    try:
        pattern, axes = row
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f'sharding: {row[0]!r} is not a regular expression: {error}.') from None
    except (TypeError, ValueError):
        raise UserError(f'sharding: {row!r} is not a row (regex, axes).') from None
    if isinstance(axes, str):
        raise UserError(f'sharding: axes of row {pattern!r} are {axes!r}; write ({axes!r},).')
    axes = tuple(_entry(entry) for entry in axes)
    named = [axis for entry in axes for axis in entry]
    for axis in named:
        if axis not in mesh.shape:
            raise UserError(
                f'sharding: row {pattern!r} names the axis {axis!r}; the mesh has '
                f'{", ".join(mesh.axis_names)}.'
            )
        if named.count(axis) > 1:
            raise UserError(f'sharding: row {pattern!r} names the axis {axis!r} twice.')
    return regex, axes


def _entry(entry: Any) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def _spec(
    name: str, shape: Sequence[int], regex: re.Pattern, axes: Axes, mesh: Mesh
) -> PartitionSpec:
    if len(axes) > len(shape):
        raise UserError(
            f'sharding: row {regex.pattern!r} names {len(axes)} dimensions, but {name} has the '
            f'shape {list(shape)}; shorten the row or put one for {name} before it.'
        )
    leading = len(shape) - len(axes)
    entries = [None] * leading
    for size, entry in zip(shape[leading:], axes):
        kept, parts = [], 1
        for axis in entry:
            if size % (parts * mesh.shape[axis]) == 0:
                kept.append(axis)
                parts *= mesh.shape[axis]
        entries.append(None if not kept else kept[0] if len(kept) == 1 else tuple(kept))
    return PartitionSpec(*entries)


def _check_replicated(replicated: list[tuple[int, str]], total: int) -> None:
    share = sum(size for size, _ in replicated) / max(total, 1)
    if share > MAX_REPLICATED:
        largest = [
            f'{name} ({format_bytes(count)})' for count, name in sorted(replicated, reverse=True)
        ]
        raise UserError(
            f'sharding: {share:.1%} of the bytes are replicated on every device, at most '
            f'{MAX_REPLICATED:.0%} may be when mesh.fsdp > 1. The largest: {_some(largest)}. Name '
            'an axis that divides one of their dimensions, or set mesh.fsdp=1 and mesh.data=-1.'
        )


def _some(names: list[str], limit: int | None = SHOWN) -> str:
    rest = len(names) - limit if limit and len(names) > limit else 0
    return ', '.join(names[: len(names) - rest]) + (f' and {rest} more' if rest else '')


def _bytes(leaf: Any) -> int:
    return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def format_bytes(count: float) -> str:
    """Bytes with a unit, as in 6.14 kB."""
    for unit in ('B', 'kB', 'MB'):
        if count < 1000:
            return f'{count:.3g} {unit}'
        count /= 1000
    return f'{count:,.1f} GB'


def overview(tree: Any) -> str:
    """Table of a tree of arrays or ShapeDtypeStructs, one line per leaf, then totals.

    Columns: path, shape, dtype, values, bytes, and the mesh axes of each dimension if the leaf has
    a NamedSharding. Totals are grouped by the first name in which the paths differ.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    rows, totals = [], {}
    paths = [path_name(path).split('/') for path, _ in leaves]
    depth = 0  # names that all paths share, such as 'params'
    while len(paths) > 1 and len({tuple(path[: depth + 1]) for path in paths}) == 1:
        depth += 1
    for path, (_, leaf) in zip(paths, leaves):
        count, size = math.prod(leaf.shape), _bytes(leaf)
        sharding = getattr(leaf, 'sharding', None)
        spec = str(tuple(sharding.spec)) if isinstance(sharding, NamedSharding) else ''
        shape = 'x'.join(map(str, leaf.shape)) or '-'
        rows.append(('/'.join(path), shape, np.dtype(leaf.dtype).name, count, size, spec))
        for key in ('/'.join(path[: depth + 1]), 'total'):
            values, total = totals.get(key, (0, 0))
            totals[key] = values + count, total + size
    totals['total'] = totals.pop('total', (0, 0))  # last
    rows += [(key, '', '', *both, '') for key, both in totals.items()]
    cells = [(*row[:3], f'{row[3]:,}', format_bytes(row[4]), row[5]) for row in rows]
    cells.insert(0, ('path', 'shape', 'type', 'values', 'bytes', 'mesh axes'))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [
        '  '.join(
            cell.rjust(width) if 3 <= i <= 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1 + len(leaves), '')
    return '\n'.join(lines)


def to_device_memory(tree: Any) -> Any:
    """The tree with all arrays in device memory; some may be offloaded to host memory."""
    return jax.device_put(tree, jax.memory.Space.Device)


def axes_of(path: str, shape: Sequence[int], kept: Sequence[str], mesh: Mesh, table) -> Axes:
    """Mesh axes of each dimension of a parameter, by the table of the config.

    `kept`: for each dimension, the axis along which it stays sharded in use, or ''. Raises
    UserError if that axis does not come first, since the part of a device would not be contiguous.
    """
    padded = (*spec(path, shape, mesh, table), *(None,) * len(shape))[: len(shape)]
    axes = tuple((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in padded)
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
    """Each device's part of a gradient, which is summed over the axes of `summed` and equal along
    all others; `axes` and `kept` as in `gathered`.
    """
    for dimension, others in enumerate(_others(axes, kept)):
        if others:
            gradient = jax.lax.psum_scatter(
                gradient, others, scatter_dimension=dimension, tiled=True
            )
            equal = [jax.lax.axis_size(axis) for axis in others if axis not in summed]
            gradient /= math.prod(equal)
    rest = tuple(axis for axis in summed if not any(axis in own for own in axes))
    return jax.lax.psum(gradient, rest) if rest else gradient


def _others(axes: Axes, kept: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(axis for axis in own if axis != stays) for own, stays in zip(axes, kept)]
