"""How a row's tokens lie on the mesh: rows over the batch axes, tokens over `context`.

With a context axis of c devices each of the four streams is cut into c equal parts, and a device
holds one part of each: `[text | vision | representation | pixels]` in small. So all but attention
stays on its device. In arrays [B, L, ...] the parts stand after one another; who sees whom is in
the integers of a token, not in its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rf_jax.runtime.mesh import BATCH_AXES


@dataclass(frozen=True)
class Cut:
    """`mesh` None: one device, or as XLA likes."""

    mesh: Mesh | None = None

    @property
    def parts(self) -> int:
        """Devices that share a row."""
        return self.mesh.shape['context'] if self.mesh else 1

    def lay(self, x: jax.Array, *after: str | None) -> jax.Array:
        """[B, L, ...] on its devices; `after` names axes of the dimensions that follow."""
        if self.mesh is None or self.mesh.size == 1:
            return x
        spec = PartitionSpec(BATCH_AXES, 'context', *after)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def join(self, streams: Sequence[jax.Array]) -> jax.Array:
        """Streams [B, n, ...] to [B, L, ...], part by part."""
        if self.parts == 1:
            return jnp.concatenate(streams, 1)
        split = [a.reshape(a.shape[0], self.parts, -1, *a.shape[2:]) for a in streams]
        joined = jnp.concatenate(split, 2)
        return joined.reshape(joined.shape[0], -1, *joined.shape[3:])

    def split(self, x: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
        """[B, L, ...] to streams of so many tokens; the inverse of `join`."""
        x = x.reshape(x.shape[0], self.parts, -1, *x.shape[2:])
        found, start = [], 0
        for length in lengths:
            stream = x[:, :, start : start + length // self.parts]
            found.append(stream.reshape(x.shape[0], length, *x.shape[3:]))
            start += length // self.parts
        return found

    def arrange(self, array: jax.Array, lengths: Sequence[int]) -> jax.Array:
        """[B, L, ...] stream after stream to part after part."""
        return self.join(UNCUT.split(array, lengths)) if self.parts > 1 else array

    def restore(self, array: jax.Array, lengths: Sequence[int]) -> jax.Array:
        """The inverse of `arrange`."""
        return UNCUT.join(self.split(array, lengths)) if self.parts > 1 else array


UNCUT = Cut()
