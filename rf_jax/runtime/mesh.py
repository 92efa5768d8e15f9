"""The device mesh: sizes of its named axes, and which process holds which batch rows."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rf_jax.runtime.errors import UserError

AXES = ('data', 'fsdp', 'expert', 'tensor', 'context')
BATCH_AXES = ('data', 'fsdp', 'expert')  # batch rows are sharded along these


def axis_sizes(sizes: Mapping[str, int], count: int) -> tuple[int, ...]:
    """Sizes of AXES for `count` devices; one of `sizes` may be -1 to take the rest.

    Raises:
      UserError: an axis is unknown or missing, a size is neither -1 nor positive, two are -1, or
        their product is not `count`.
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
            f'{shown} need a multiple of {named} devices, but there are {count}; change one '
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
      sizes: config.mesh, devices along each axis; at most one is -1, the rest.
      devices: default: all devices of all hosts.

    Raises:
      UserError: see axis_sizes; or neither mesh.data nor mesh.fsdp can be split over the slices, or
        the devices do not fill a block of the torus.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = axis_sizes(sizes, len(devices))
    return Mesh(_arrange(shape, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arrange(shape: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """Devices in `shape`. Slices, linked by a slow network, go along `data`, then along `fsdp`.

    JAX numbers the hosts of GPUs, or what NVLink joins of them, as slices too.
    """
    one, many = ('host', 'hosts') if devices[0].platform == 'gpu' else ('slice', 'slices')
    slices = Counter(getattr(device, 'slice_index', 0) for device in devices)
    if len(set(slices.values())) > 1:
        raise UserError(f'{many} of unequal size, {dict(slices)} devices: leave the odd one out.')
    data, fsdp = shape[:2]
    across_data = math.gcd(data, len(slices))
    across_fsdp = len(slices) // across_data
    if fsdp % across_fsdp:
        raise UserError(
            f'mesh.data={data} x mesh.fsdp={fsdp} cannot be split between {len(slices)} {many}: '
            f'make mesh.data a multiple of {len(slices)}; the other axes stay within a {one}.'
        )
    if across_fsdp > 1:
        logging.log_first_n(
            logging.WARNING,
            'mesh.fsdp=%d spans %d %s: parameters cross the slow network between them in every '
            'step; with mesh.data=%d only gradients do',
            *(1, fsdp, across_fsdp, many, len(slices)),
        )
    across = (across_data, across_fsdp, *(1 for _ in shape[2:]))
    within = tuple(size // outer for size, outer in zip(shape, across))
    try:
        if len(slices) == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    # All of what mesh_utils raises where a torus cannot be split as asked; NotImplementedError is
    # JAX's word for a logical axis that no set of physical axes makes.
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        shown = ', '.join(f'mesh.{axis}={size}' for axis, size in zip(AXES, shape) if size > 1)
        raise UserError(
            f'JAX cannot lay out {shown or "one device"} over {len(devices)} devices in '
            f'{len(slices)} {one}(s), change one of them: {str(error).splitlines()[0][:200]}'
        ) from error


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of batch arrays [B, ...]: B over data, fsdp and expert, the rest replicated."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_by_process(mesh: Mesh, rows: int) -> dict[int, np.ndarray]:
    """{process: batch rows that its devices hold}, int64, ascending.

    The devices of a host form a block of the torus, so its rows need not be contiguous. Processes
    along the tensor or context axis hold the same rows.
    """
    held = defaultdict(set)
    for device, (index, *_) in batch_sharding(mesh).devices_indices_map((rows,)).items():
        held[device.process_index].update(range(*index.indices(rows)))
    return {process: np.array(sorted(indices)) for process, indices in sorted(held.items())}


def put_rows(mesh: Mesh, array: np.ndarray, rows: np.ndarray, count: int) -> jax.Array:
    """An array [count, ...] sharded as `batch_sharding`.

    `array`: [len(rows), ...], the rows of this process; `rows`: their indices (`rows_by_process`).
    """

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        first = np.searchsorted(rows, start)
        return array[first : first + stop - start]

    shape = (count, *array.shape[1:])
    return jax.make_array_from_callback(shape, batch_sharding(mesh), shard)


def put_flag(mesh: Mesh, flag: bool) -> jax.Array:
    """bool[devices]: each device holds the flag of its process.

    Unlike batch rows, no element is replicated on two processes, which might disagree.
    """
    each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback((mesh.size,), each, lambda _: np.full(1, flag))


def check_batch_size(rows: int, mesh: Mesh) -> None:
    """Raises UserError if `rows`, the global batch size, cannot be sharded evenly."""
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if rows < 1 or rows % parts:
        shown = ' x '.join(f'mesh.{axis}={mesh.shape[axis]}' for axis in BATCH_AXES)
        raise UserError(
            f'data.batch_size is {rows}, but must be a positive multiple of {parts} ({shown}).'
        )
