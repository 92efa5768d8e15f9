"""How the tensors of a family become our arrays: rows of one declarative table.

`theirs` names a tensor, with {layer} and {expert} where ours is a stack. `sizes` are its
dimensions, by names whose values follow from config.json. A `Layout` turns one tensor into ours and
back; it does no arithmetic, so that weights come out bit for bit as they went in.
"""

import itertools
import math
import mmap
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

_OFF = 16  # bytes from the beginning of a page


class Layout(NamedTuple):
    """`ours(tensor)`: a view of the tensor as ours, so that slices of it stay slices of the file.
    `theirs(array, shape)`: back to a tensor of that shape; None: it is only read.
    """

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None


SAME = Layout(lambda tensor: tensor, lambda array, shape: array)
# torch's linear layers are (out, in).
TRANSPOSED = Layout(lambda tensor: tensor.swapaxes(-1, -2),
                    lambda array, shape: array.swapaxes(-1, -2))  # fmt: skip
# (1, n, D) to (n, D)
TOKENS = Layout(lambda tensor: tensor[0], lambda array, shape: array[None])
# A convolution (D, C, side, side) to a matrix (side side C, D): our patches are (row, column,
# channel).
PATCHES = Layout(
    lambda tensor: tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0]),
    lambda array, shape: array.reshape(*shape[2:], *shape[1::-1]).transpose(3, 2, 0, 1),
)


class Row(NamedTuple):
    """One tensor, or one for each layer and expert, and the parameter that it fills.

    Several rows may name the same parameter: they follow each other on its first axis.
    """

    theirs: str
    sizes: tuple[str | int, ...]
    ours: str
    layout: Layout = SAME

    def stack(self) -> list[str]:
        """Names of the stacked axes of ours, outermost first."""
        return [name for _, name, _, _ in string.Formatter().parse(self.theirs) if name]

    def names(self, sizes: Mapping[str, int]) -> Iterator[tuple[tuple[int, ...], str]]:
        """(index in the stack, name of the tensor) of all its tensors."""
        axes = self.stack()
        # Layers change fastest: they are neighbours in the chunks of a checkpoint.
        for reverse in itertools.product(*(range(sizes[axis]) for axis in reversed(axes))):
            index = reverse[::-1]
            yield index, self.theirs.format(**dict(zip(axes, index)))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Of each tensor."""
        return tuple(size if isinstance(size, int) else sizes[size] for size in self.sizes)


def linear(theirs: str, out: str, into: str, ours: str, bias: bool = True) -> tuple[Row, ...]:
    """The rows of a linear layer of torch."""
    kernel = Row(f'{theirs}.weight', (out, into), f'{ours}/kernel', TRANSPOSED)
    return (kernel, Row(f'{theirs}.bias', (out,), f'{ours}/bias')) if bias else (kernel,)


def layer_norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a layer norm of torch."""
    scale, bias = f'{theirs}.weight', f'{theirs}.bias'
    return Row(scale, ('width',), f'{ours}/scale'), Row(bias, ('width',), f'{ours}/bias')


class Leaf:
    """One parameter of ours: its rows, its shape, and slices of it."""

    def __init__(self, rows: Sequence[Row], sizes: Mapping[str, int]):
        self.rows, self._sizes = tuple(rows), sizes
        parts = [_shape(row.layout, row.shape(sizes)) for row in rows]
        self.stack = tuple(sizes[axis] for axis in rows[0].stack())
        self.part = parts[0] if len(rows) == 1 else (sum(p[0] for p in parts), *parts[0][1:])
        self.shape = self.stack + self.part

    def read(
        self, index: tuple[slice, ...], tensor: Callable[[str], np.ndarray], dtype: np.dtype
    ) -> np.ndarray:
        """Ours at `index`, without steps; `tensor(name)` gives a view of a tensor."""
        depth = len(self.stack)
        wanted = ranges(index, self.shape)
        found = _empty([len(each) for each in wanted], dtype)
        for at in itertools.product(*(range(len(each)) for each in wanted[:depth])):
            place = [wanted[axis][i] for axis, i in enumerate(at)]
            names = dict(zip(self.rows[0].stack(), place))
            parts = [row.layout.ours(tensor(row.theirs.format(**names))) for row in self.rows]
            part = parts[0] if len(parts) == 1 else np.concatenate(parts)
            found[at] = part[tuple(index[depth:])]
        return found

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of the tensors, in the order of `tensors`."""
        for row in self.rows:
            shape = row.shape(self._sizes)
            yield from ((name, shape) for _, name in row.names(self._sizes))

    def tensors(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(name, tensor) of all tensors of ours: the inverse of `read`. `array` is whole, or gives
        numpy arrays for slices.
        """
        start = 0
        for row in self.rows:
            shape = row.shape(self._sizes)
            count = _shape(row.layout, shape)[0]
            for index, name in row.names(self._sizes):
                part = array[index][start : start + count] if len(self.rows) > 1 else array[index]
                yield name, row.layout.theirs(part, shape)
            start += count


def _empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An array in pages of its own, which go back to the system with it: `malloc` would keep up to
    64 MB of what is freed. It begins off the alignment at which jax, on CPU, would borrow the
    memory in place of copying it: borrowed memory is not reused when the state is donated.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size + _OFF, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(pages, np.uint8, size, _OFF).view(dtype).reshape(shape)


def _shape(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of ours for a tensor of this shape."""
    return layout.ours(np.broadcast_to(np.int8(0), shape)).shape


def ranges(index: tuple[slice, ...], shape: tuple[int, ...]) -> list[range]:
    """The places along each axis that an index takes."""
    return [range(*each.indices(size)) for each, size in zip(index, shape)]


def leaves(rows: Sequence[Row], sizes: Mapping[str, int]) -> dict[str, Leaf]:
    """{path of our parameter: leaf}"""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.ours, []).append(row)
    return {path: Leaf(rows, sizes) for path, rows in found.items()}
