"""Sharding of tokens over the mesh: rows over the batch axes, the tokens of a row over `context`.

With a context axis of c devices, each of the four streams is split into c equal parts, and each
device holds one part of each stream: a smaller `[text | vision | representation | pixels]`. So only
attention communicates between devices. In arrays [B, L, ...] the parts follow one another; the
attention mask depends on the integers of a token, not on its place in the array.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rf_jax.runtime.mesh import BATCH_AXES


@dataclass(frozen=True)
class TokenSharding:
    """`mesh` None: one device, or the sharding that XLA chooses."""

    mesh: Mesh | None = None

    @property
    def parts(self) -> int:
        """Devices that share a row."""
        return self.mesh.shape['context'] if self.mesh else 1

    def constrain(self, x: jax.Array, *after: str | None) -> jax.Array:
        """Constrains the sharding of [B, L, ...]; `after`: mesh axes of further dimensions."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        spec = PartitionSpec(BATCH_AXES, 'context', *after)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def join(self, streams: Sequence[jax.Array]) -> jax.Array:
        """Joins streams [B, n, ...] to [B, L, ...], part by part."""
        if self.parts == 1:
            return jnp.concatenate(streams, 1)
        split = [a.reshape(a.shape[0], self.parts, -1, *a.shape[2:]) for a in streams]
        joined = jnp.concatenate(split, 2)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])

    def split(self, x: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
        """Splits [B, L, ...] into streams of these lengths; the inverse of `join`."""
        x = x.reshape(x.shape[0], self.parts, -1, *x.shape[2:])
        found, start = [], 0
        for length in lengths:
            stream = x[:, :, start : start + length // self.parts]
            found.append(stream.reshape(x.shape[0], length, *x.shape[3:]))
            start += length // self.parts
        return found

    def interleave(self, array: jax.Array, lengths: Sequence[int]) -> jax.Array:
        """Reorders [B, L, ...] from stream by stream to part by part."""
        return self.join(UNSHARDED.split(array, lengths)) if self.parts > 1 else array

    def deinterleave(self, array: jax.Array, lengths: Sequence[int]) -> jax.Array:
        """The inverse of `interleave`."""
        return UNSHARDED.join(self.split(array, lengths)) if self.parts > 1 else array


UNSHARDED = TokenSharding()
