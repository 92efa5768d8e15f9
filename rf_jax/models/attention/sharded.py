"""Attention on a mesh: rows and heads are sharded, the keys of a row are gathered."""

from dataclasses import dataclass
from functools import partial

import jax
from jax.sharding import Mesh, PartitionSpec

from rf_jax.models.attention import Attention
from rf_jax.models.attention.masks import FIELDS, Integers
from rf_jax.runtime.mesh import BATCH_AXES

ROWS = (*BATCH_AXES, 'context')


@dataclass(frozen=True)
class ShardedAttention:
    """Runs `attention` on each device, for the queries of its rows, of its part of a row
    (`context`) and of its heads (`tensor`). It gathers the keys and values of the row, which are
    few with grouped queries.
    """

    attention: Attention
    mesh: Mesh

    def prepare(self, query: Integers, key: Integers):
        """As `attention` prepares each device's queries: the leading axis is B times `context`."""
        tokens = PartitionSpec(BATCH_AXES, 'context')

        def local(query, key):
            return self.attention.prepare(query, {name: _whole(a) for name, a in key.items()})

        run = self._map(local, in_specs=(tokens, tokens), out_specs=PartitionSpec(ROWS))
        return run(*({name: side[name] for name in FIELDS} for side in (query, key)))

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        """q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] -> [B, Lq, H, Dh].

        With more devices along `tensor` than key/value heads, each takes the one that its queries
        need. If neither number divides the other, or `tensor` does not divide the query heads, each
        computes all heads.
        """
        ways, kv_heads = self.mesh.shape['tensor'], k.shape[2]
        own_keys = kv_heads % ways == 0
        one_of = not own_keys and ways % kv_heads == 0 and q.shape[2] % ways == 0
        queries = PartitionSpec(BATCH_AXES, 'context', 'tensor' if own_keys or one_of else None)
        keys = PartitionSpec(BATCH_AXES, 'context', 'tensor' if own_keys else None)

        def local(q, k, v, prepared):
            if one_of:
                at = jax.lax.axis_index('tensor') * kv_heads // ways
                k, v = (jax.lax.dynamic_slice_in_dim(a, at, 1, axis=2) for a in (k, v))
            return self.attention(q, _whole(k), _whole(v), prepared)

        specs = (queries, keys, keys, PartitionSpec(ROWS))
        return self._map(local, in_specs=specs, out_specs=queries)(q, k, v, prepared)

    def _map(self, local, **specs):
        # Pallas kernels do not declare how their outputs vary over the mesh.
        return partial(jax.shard_map, mesh=self.mesh, check_vma=False, **specs)(local)


def _whole(x: jax.Array) -> jax.Array:
    """[B, part of L, ...] -> [B, L, ...] within shard_map."""
    return jax.lax.all_gather(x, 'context', axis=1, tiled=True)
