"""The device mesh: how many devices stand along each named axis, and where batch rows go."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rf_jax.runtime.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
BATCH_AXES = ('data', 'fsdp', 'expert')  # rows of a batch are cut along these


def axis_sizes(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Sizes of AXES for `count` devices; one of `sizes` may be -1, the rest.

    Raises:
      UserError: unknown or missing axis, a size that is neither -1 nor positive, two -1, or a
        product that is not `count`.
    """
    unknown = sorted(set(sizes) - set(AXES))
    missing = [axis for axis in AXES if axis not in sizes]
    if unknown or missing:
        raise UserError(f'mesh must have the fields {AXES}: unknown {unknown}, missing {missing}.')
    for axis in AXES:
        if sizes[axis] != -1 and sizes[axis] < 1:
            raise UserError(
                f'mesh.{axis} is {sizes[axis]}: give a positive number, or -1 for the rest.'
            )
    free = [axis for axis in AXES if sizes[axis] == -1]
    if len(free) > 1:
        names = ' and '.join(f'mesh.{axis}' for axis in free)
        raise UserError(f'{names} are -1: only one axis can take the rest of the devices.')
    named = math.prod(sizes[axis] for axis in AXES if sizes[axis] != -1)
    shown = ', '.join(f'mesh.{axis}={sizes[axis]}' for axis in AXES if sizes[axis] not in (1, -1))
    if free and count % named:
        raise UserError(
            f'{shown} ask for a multiple of {named} devices, but there are {count}; change one '
            f'of them (mesh.{free[0]}=-1 takes the rest).'
        )
    if not free and named != count:
        raise UserError(
            f'{shown or "every mesh axis = 1"} make {named} devices, but there are {count}; '
            'change one of them or set one axis to -1, the rest (for example mesh.fsdp=-1).'
        )
    return tuple(count // named if sizes[axis] == -1 else sizes[axis] for axis in AXES)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run, all axes Auto, in the order of AXES.

    Args:
      sizes: config.mesh, devices along each axis; at most one -1, the rest.
      devices: default: all devices of all hosts.

    Raises:
      UserError: see axis_sizes; several slices of a pod that mesh.data cannot be cut into.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = axis_sizes(sizes, len(devices))
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices in `shape`; between slices of a pod, where the network is slow, only `data`."""
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if shape[0] % slices:
        raise UserError(
            f'mesh.data is {shape[0]}, but the devices stand in {slices} slices: give a multiple '
            f'of {slices}, so that only gradients cross the network between slices.'
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // slices, *shape[1:]), (slices,) + (1,) * (len(shape) - 1), devices
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays [B, ...]: rows over data, fsdp and expert, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def share_of_rows(mesh: Mesh) -> tuple[int, int]:
    """(number, count) of the equal shares of a batch's rows: which of them this process feeds.

    Processes that hold parts of the same rows, by the tensor or context axis, feed the same share.
    Raises UserError if its devices' rows do not stand together.
    """
    places = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    own = np.vectorize(lambda device: device.process_index == jax.process_index())(mesh.devices)
    held = np.flatnonzero(own.reshape(places, -1).any(1))
    if not held.size or held[-1] - held[0] + 1 != held.size or held[0] % held.size:
        raise UserError(
            f'mesh gives process {jax.process_index()} the row places {held.tolist()} of {places}, '
            'which do not stand together; let mesh.tensor x mesh.context divide or be a multiple '
            'of the devices of a process'
        )
    return int(held[0] // held.size), places // held.size


def check_rows(rows: int, mesh: Mesh) -> None:
    """Raises UserError if `rows` of the global batch cannot be shared out evenly."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows < 1 or rows % parts:
        shown = ' x '.join(f'mesh.{axis}={mesh.shape[axis]}' for axis in BATCH_AXES)
        raise UserError(
            f'data.rows is {rows}, but must be a positive multiple of {parts} ({shown}).'
        )
