"""Microbatches: parts of a batch, processed in turn, so intermediates of only one are in memory.

Entry i of the first axis goes to part i mod count, so if a batch is sharded along this axis, each
part is sharded over all devices too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random as prng


def split(tree: Any, count: int) -> Any:
    """Arrays [n, ...] -> [count, n / count, ...]."""
    return jax.tree.map(
        lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), tree
    )


def join(tree: Any) -> Any:
    """Arrays [count, n / count, ...] -> [n, ...]; the inverse of `split`."""
    return jax.tree.map(
        lambda a: a.swapaxes(0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:]), tree
    )


def map_parts(function: Callable, count: int, *arrays: Any) -> Any:
    """`function(*arrays)` for each part of the arrays, results stacked: [count, ...]."""
    if count == 1:
        return jax.tree.map(lambda a: a[None], function(*arrays))
    return jax.lax.map(lambda part: function(*part), split(arrays, count))


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`; `number` may be traced."""

    number: int | jax.Array = 0
    count: int = 1

    def take(self, array: jax.Array) -> jax.Array:
        """[n, ...] of the whole batch -> [n / count, ...] of this part."""
        return split(array, self.count)[self.number]

    def normal(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """This part, float32 of this shape, of the normal values that `key` gives the whole batch.

        The other parts are not generated. `key` is a threefry key.
        """
        if self.count == 1:
            return jax.random.normal(key, shape)
        place = jnp.stack([jnp.uint32(self.number), jnp.uint32(self.count)])
        data = jnp.concatenate([jax.random.key_data(key), place])
        return jax.random.normal(jax.random.wrap_key_data(data, impl=_STRIDED), shape)


WHOLE = Part()


def summed(function: Callable, batch: Any, count: int) -> Any:
    """The sum over `count` parts of `function(rows, part)`, one part at a time."""
    if count == 1:
        return function(batch, WHOLE)
    rows = split(batch, count)
    first = jax.tree.map(lambda a: a[0], rows)
    shapes = jax.eval_shape(lambda rows: function(rows, Part(0, count)), first)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def add(total, numbered):
        rows, number = numbered
        return jax.tree.map(jnp.add, total, function(rows, Part(number, count))), None

    return jax.lax.scan(add, zero, (rows, jnp.arange(count)))[0]


def _strided_bits(data: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """The threefry bits of entries number, number + count, ... of a larger array, where the bits of
    an entry are a hash of its flat 64-bit index. `data` uint32 [4]: key, number, count.
    """
    assert width == 32 and shape
    row = jax.lax.broadcasted_iota(jnp.uint32, shape, 0) * data[3] + data[2]
    inside = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        inside += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    size = math.prod(shape[1:])
    low = row * jnp.uint32(size) + inside
    high = _high_product(row, size) + (low < inside).astype(jnp.uint32)
    first, second = prng.threefry2x32_p.bind(data[0], data[1], high, low)
    return first ^ second


def _high_product(x: jax.Array, y: int) -> jax.Array:
    """The upper 32 bits of uint32 x times y; jax.lax.mulhi does not compile on a mesh."""
    low, high = x & 0xFFFF, x >> 16
    y_low, y_high = jnp.uint32(y & 0xFFFF), jnp.uint32(y >> 16)
    first = high * y_low + (low * y_low >> 16)
    second = low * y_high + (first & 0xFFFF)
    return high * y_high + (first >> 16) + (second >> 16)


def _unsupported(*_: Any) -> Any:
    raise AssertionError('this key can only generate bits')


_STRIDED = prng.define_prng_impl(
    key_shape=(4,),
    seed=_unsupported,
    split=_unsupported,
    random_bits=_strided_bits,
    fold_in=_unsupported,
    name='strided',
)
