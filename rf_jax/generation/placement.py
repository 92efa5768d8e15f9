"""Where a model generates: on one device, or sharded as in training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from rf_jax.models import unified
from rf_jax.runtime import mesh, sharding


def without_context(mesh_: Mesh) -> Mesh:
    """The mesh with its `context` axis merged into `data`: sampling does not split a row."""
    sizes = dict(mesh_.shape)
    sizes['data'], sizes['context'] = sizes['data'] * sizes['context'], 1
    at = mesh_.axis_names.index('data'), mesh_.axis_names.index('context')
    devices = np.moveaxis(mesh_.devices, at[1], at[0] + 1).reshape(tuple(sizes.values()))
    return Mesh(devices, mesh_.axis_names, axis_types=mesh_.axis_types)


@dataclass(frozen=True)
class Placement:
    """One device (`mesh` None), or the mesh of a run.

    On a mesh the parameters keep the sharding of training, the rows of a batch are sharded over the
    batch axes, and all processes run the same programs and get complete results.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, mesh_: Mesh) -> 'Placement':
        """The placement for the mesh of a run."""
        return cls(without_context(mesh_) if mesh_.size > 1 else None)

    @property
    def multiple(self) -> int:
        """The number of rows of a batch must be a multiple of this."""
        return math.prod(self.mesh.shape[axis] for axis in mesh.BATCH_AXES) if self.mesh else 1

    def full(self, rows: int) -> int:
        """`rows` rounded up to `multiple`."""
        return -(-rows // self.multiple) * self.multiple

    def model(self, config: ConfigDict, vocabulary: int) -> unified.Unified:
        """The model, built for these devices. Raises UserError."""
        return unified.build(config, vocabulary, self.mesh)

    def params(self, tree: Any) -> Any:
        """The parameters, sharded as in training, in device memory."""
        tree = sharding.to_device_memory(tree)
        if self.mesh is None:
            return tree
        return jax.device_put(
            tree, jax.tree.map(lambda x: NamedSharding(self.mesh, x.sharding.spec), tree)
        )

    def inputs(self, tree: Any) -> Any:
        """Shards arrays [B, ...] that are equal in all processes; B is a multiple of `multiple`."""
        if self.mesh is None:
            return tree
        where = mesh.batch_sharding(self.mesh)
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, where, lambda part: x[part]), tree
        )

    def jit(self, program: Callable) -> Callable:
        """`jax.jit` with replicated results, so that every process can read them."""
        if self.mesh is None:
            return jax.jit(program)
        return jax.jit(program, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def gather(self, x: jax.Array) -> np.ndarray:
        """A small array, complete in every process."""
        if self.mesh is None or x.is_fully_addressable:
            return np.asarray(x)
        whole = NamedSharding(x.sharding.mesh, PartitionSpec())
        return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))


ONE_DEVICE = Placement()
