"""Where a model generates: on one device, on the mesh of a training run, or on one for inference.

In training every parameter is sharded over as many devices as possible, and gathered for use. For
inference heads, feed-forwards and vocabularies are sharded over `tensor` and routed experts over
`expert`, as they are used, so no parameter is gathered; `data` shards the rows of a batch.

Where no parameter is gathered the layers are held one by one (`transformer.by_layer`), so that
decoding reads them where they are. Where they are gathered they stay stacked: of a loop over the
layers, XLA cannot gather all beforehand.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from ml_collections import ConfigDict

from rf_jax.models import transformer, unified
from rf_jax.runtime import mesh, sharding
from rf_jax.runtime.errors import choose, require

# Rows as in `config.sharding`, after those of `config.sampling.sharding`.
INFERENCE = (
    (r'(query|key|value|gate|up)/kernel$', (None, 'tensor')),
    (r'(output|down)/kernel$', ('tensor', None)),
    (r'(gate|up)$', ('expert', None, 'tensor')),  # routed experts
    (r'down$', ('expert', 'tensor', None)),
    (r'(logits|text_head)/kernel$', (None, 'tensor')),
    (r'table$', (None, 'tensor')),
    (r'', ()),  # the rest is small: norms, biases, routers, patches
)
INFERENCE_AXES = ('data', 'expert', 'tensor')
# Parameters of the float32 islands (design rule 8) are float32 in a bfloat16 model too.
ISLANDS = r'(scale|bias|router)$|(^|/)(time|patch_out|predicted|posterior|autoencoder/patch)/'
INFERENCE_DTYPES = dict.fromkeys(('bfloat16',))


def merged(mesh_: Mesh, axes: Sequence[str]) -> Mesh:
    """The mesh with these axes merged into `data`."""
    rest = [axis for axis in mesh.AXES if axis not in ('data', *axes)]
    order = [mesh_.axis_names.index(axis) for axis in ('data', *axes, *rest)]
    sizes = {axis: 1 if axis in axes else mesh_.shape[axis] for axis in mesh.AXES}
    sizes['data'] = math.prod(mesh_.shape[axis] for axis in ('data', *axes))
    devices = mesh_.devices.transpose(order).reshape(tuple(sizes.values()))
    return Mesh(devices, mesh.AXES, axis_types=(AxisType.Auto,) * len(mesh.AXES))


def without_context(mesh_: Mesh) -> Mesh:
    """The mesh with its `context` axis merged into `data`: sampling does not split a row."""
    return merged(mesh_, ('context',))


def natural_sizes(config: ConfigDict, devices: int) -> dict[str, int]:
    """Sizes for inference on this many devices: `tensor` as the key and value heads allow, then
    `expert` as the experts do.
    """
    backbone = config.model.backbone
    tensor = math.gcd(devices, backbone.kv_heads)
    experts = backbone.moe.num_experts if backbone.ffn == 'moe' else 1
    return {'tensor': tensor, 'expert': math.gcd(devices // tensor, experts)}


def inference_mesh(asked: Mapping[str, int] | Mesh, devices: Sequence | None = None) -> Mesh:
    """A mesh with the axes of INFERENCE_AXES.

    `asked`: devices along axes, such as {'tensor': 4, 'expert': 2}; `data` takes the rest of
    `devices`, by default all. Or a mesh with axes of runtime/mesh.py, of which only `tensor` and
    `expert` will shard parameters. Raises UserError.
    """
    if not isinstance(asked, Mesh):
        for axis in asked:
            choose('mesh', axis, dict.fromkeys(INFERENCE_AXES))
        sizes = dict.fromkeys(mesh.AXES, 1) | {'data': -1} | dict(asked)
        return mesh.make_mesh(sizes, devices)
    for axis in asked.axis_names:
        choose('mesh', axis, dict.fromkeys(mesh.AXES))
    missing = tuple(axis for axis in mesh.AXES if axis not in asked.axis_names)
    whole = Mesh(asked.devices.reshape(*asked.devices.shape, *(1 for _ in missing)),
                 (*asked.axis_names, *missing))  # fmt: skip
    return merged(whole, ('fsdp', 'context'))


@dataclass(frozen=True)
class Placement:
    """One device (`mesh` None), or a mesh.

    On a mesh the rows of a batch are sharded over the batch axes, and all processes run the same
    programs and get complete results. `table`: how parameters are sharded, None: as in training.
    `dtype` of parameters and activations, None: as in training.
    """

    mesh: Mesh | None = None
    table: tuple | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, mesh_: Mesh) -> 'Placement':
        """The placement for the mesh of a run."""
        return cls(without_context(mesh_) if mesh_.size > 1 else None)

    @classmethod
    def for_inference(
        cls, config: ConfigDict, mesh_: Mapping[str, int] | Mesh | None, dtype: str | None = None
    ) -> 'Placement':
        """`mesh_` as `inference_mesh` takes it; None: one device. Raises UserError."""
        if dtype is not None:
            choose('dtype', dtype, INFERENCE_DTYPES)
        if mesh_ is None:
            return cls(dtype=dtype)
        found = inference_mesh(mesh_)
        c, ways = config.model.backbone, found.shape['tensor']
        require(
            c.heads % ways == 0 and (c.kv_heads % ways == 0 or ways % c.kv_heads == 0),
            f'mesh: tensor={ways} does not divide the heads of the model '
            f'(model.backbone.heads={c.heads}, kv_heads={c.kv_heads})',
        )
        table = (*map(tuple, config.sampling.get('sharding', ())), *INFERENCE)
        return cls(found, table, dtype)

    @property
    def multiple(self) -> int:
        """The number of rows of a batch must be a multiple of this."""
        return math.prod(self.mesh.shape[axis] for axis in mesh.BATCH_AXES) if self.mesh else 1

    def full(self, rows: int) -> int:
        """`rows` rounded up to `multiple`."""
        return -(-rows // self.multiple) * self.multiple

    def model(
        self, config: ConfigDict, vocabulary: int, platform: str | None = None
    ) -> unified.Unified:
        """The model, built for these devices, or those of `platform`. Raises UserError."""
        config = config.copy_and_resolve_references()
        if self.table is not None:
            config.sharding = self.table
        config.compute_dtype = self.dtype or config.compute_dtype
        return unified.build(config, vocabulary, self.mesh, platform)

    def shapes(self, tree: Any) -> Any:
        """ShapeDtypeStructs of parameters, with the dtypes and shardings that they have here."""
        one = SingleDeviceSharding(jax.local_devices()[0])
        where = (
            jax.tree.map(lambda _: one, tree)
            if self.mesh is None
            else sharding.shardings(tree, self.mesh, self.table)
        )

        def shape(path, leaf, place):
            island = re.search(ISLANDS, sharding.path_name(path))
            dtype = jnp.dtype(self.dtype) if self.dtype and not island else leaf.dtype
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place)

        return jax.tree_util.tree_map_with_path(shape, tree, where)

    @property
    def stacked(self) -> bool:
        """Whether the layers stay stacked: those that are gathered for use."""
        return self.mesh is not None and self.table is None

    def by_layer(self, tree: Any, free: bool = False) -> Any:
        """Parameters that are here, or their `shapes`, in the form in which they are used; `free`
        frees each stack once it is split.
        """
        return tree if self.stacked else transformer.by_layer(tree, partial(_unstacked, free=free))

    def params(self, tree: Any) -> Any:
        """The parameters of a run, sharded as in training, in device memory; on one device a copy
        of those of the layers, one by one.
        """
        tree = sharding.to_device_memory(tree)
        if self.mesh is None:
            return self.by_layer(tree)
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

    @property
    def whole(self) -> NamedSharding | None:
        """Replicated, so that every process can read it; None on one device."""
        return NamedSharding(self.mesh, PartitionSpec()) if self.mesh else None

    def jit(self, program: Callable, **options) -> Callable:
        """`jax.jit`, with replicated results if `options` have no out_shardings."""
        return jax.jit(program, **({'out_shardings': self.whole} | options))

    def gather(self, x: jax.Array) -> np.ndarray:
        """A small array, complete in every process."""
        if self.mesh is None or x.is_fully_addressable:
            return np.asarray(x)
        whole = NamedSharding(x.sharding.mesh, PartitionSpec())
        return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))


def _unstacked(stack: jax.Array | jax.ShapeDtypeStruct, free: bool) -> Sequence:
    """The part of each layer, with the sharding that it has in the stack."""
    where, count = stack.sharding, stack.shape[0]
    if isinstance(where, NamedSharding):
        where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    if isinstance(stack, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(stack.shape[1:], stack.dtype, sharding=where)] * count
    parts = jax.jit(tuple, out_shardings=(where,) * count)(stack)
    if free:
        stack.delete()
    return parts


def of_results(params: Any) -> jax.sharding.Sharding:
    """Where the results of programs with these parameters are on one device: arrays that are put
    there do not make a program compile anew.
    """
    one = jax.tree.leaves(params)[0].sharding
    return NamedSharding(one.mesh, PartitionSpec()) if isinstance(one, NamedSharding) else one


ONE_DEVICE = Placement()
