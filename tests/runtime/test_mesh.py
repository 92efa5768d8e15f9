"""The mesh has the requested sizes, and errors name the wrong field."""

import types

import jax
import numpy as np
import pytest
import topologies

from rf_jax.runtime import mesh as mesh_lib
from rf_jax.runtime.errors import UserError


def sizes(**changes):
    return {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | changes


def test_the_axis_of_minus_one_takes_the_remaining_devices():
    mesh = mesh_lib.make_mesh(sizes(fsdp=-1, tensor=2))
    assert dict(mesh.shape) == sizes(fsdp=4, tensor=2)
    assert set(mesh.devices.flat) == set(jax.devices())
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_only_the_given_devices_are_used():
    mesh = mesh_lib.make_mesh(sizes(fsdp=-1), jax.devices()[:2])
    assert mesh.shape['fsdp'] == 2 and list(mesh.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize(
    'changes, field',
    [
        ({'data': 3, 'fsdp': -1}, 'mesh.data=3'),
        ({'data': 2, 'fsdp': 2}, 'mesh.data=2, mesh.fsdp=2 make 4 devices'),
        ({'data': 2, 'fsdp': 16}, 'there are 8'),
        ({'data': -1, 'fsdp': -1}, 'mesh.data and mesh.fsdp'),
        ({'fsdp': 0}, 'mesh.fsdp is 0'),
        ({'expert': -2}, 'mesh.expert is -2'),
        ({}, 'mesh.fsdp=-1'),
        ({'pipeline': 2}, 'pipeline'),
    ],
)
def test_wrong_sizes_name_the_field(changes, field):
    with pytest.raises(UserError, match=field.replace('.', r'\.')):
        mesh_lib.make_mesh(sizes(**changes))


def test_rows_are_sharded_along_data_fsdp_and_expert():
    mesh = mesh_lib.make_mesh(sizes(data=2, fsdp=2, tensor=2))
    batch = jax.device_put(np.arange(8 * 3).reshape(8, 3), mesh_lib.batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    assert len({shard.index[0].start for shard in batch.addressable_shards}) == 4


def test_the_batch_size_must_divide_evenly():
    mesh = mesh_lib.make_mesh(sizes(data=2, fsdp=2, tensor=2))
    mesh_lib.check_batch_size(12, mesh)
    for rows in (6, 0):
        with pytest.raises(UserError, match=rf'data\.batch_size is {rows}.*multiple of 4'):
            mesh_lib.check_batch_size(rows, mesh)


def fake_slices(count, each, platform='cpu'):
    return [
        types.SimpleNamespace(
            id=i,
            slice_index=i // each,
            process_index=i // each,
            platform=platform,
            device_kind=platform,
        )
        for i in range(count * each)
    ]


def test_slices_go_along_data_first_and_then_along_fsdp():
    devices = fake_slices(4, 2)
    by_slice = np.vectorize(lambda device: device.slice_index)
    for shape, wanted in [
        ((4, 2, 1, 1, 1), [[0, 0], [1, 1], [2, 2], [3, 3]]),
        ((2, 4, 1, 1, 1), [[0, 0, 1, 1], [2, 2, 3, 3]]),
        ((1, 8, 1, 1, 1), [[0, 0, 1, 1, 2, 2, 3, 3]]),
    ]:
        np.testing.assert_array_equal(
            by_slice(mesh_lib._arrange(shape, devices))[..., 0, 0, 0], wanted
        )


@pytest.mark.parametrize(
    ('shape', 'devices', 'words'),
    [
        (
            (1, 1, 8, 1, 1),
            fake_slices(2, 4),
            r'mesh\.data=1 x mesh\.fsdp=1 .* between 2 slices',
        ),
        (
            (1, 1, 8, 1, 1),
            fake_slices(2, 4, 'gpu'),
            r'between 2 hosts: make mesh\.data a multiple of 2.* within a host',
        ),
        ((1, 7, 1, 1, 1), fake_slices(2, 4)[1:], 'slices of unequal size, {0: 3, 1: 4}'),
        (
            (3, 1, 1, 1, 1),
            topologies.recorded('v5p:2x2x1', 1)[1:],
            r'lay out mesh\.data=3 over 3 devi',
        ),
    ],
)
def test_an_impossible_mesh_is_a_one_line_error(shape, devices, words):
    with pytest.raises(UserError, match=words) as caught:
        mesh_lib._arrange(shape, devices)
    assert '\n' not in str(caught.value)


def test_rows_are_placed_on_the_devices_that_hold_them():
    """Devices in an order in which no block of rows is contiguous, and replicas of each row."""
    order = [0, 5, 2, 7, 4, 1, 6, 3]
    mesh = mesh_lib.make_mesh(sizes(data=2, fsdp=2, tensor=2), [jax.devices()[i] for i in order])
    whole = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    (rows,) = mesh_lib.rows_by_process(mesh, 8).values()
    put = mesh_lib.put_rows(mesh, whole, rows, 8)
    right = jax.device_put(whole, mesh_lib.batch_sharding(mesh))
    assert put.sharding == right.sharding
    for one, two in zip(put.addressable_shards, right.addressable_shards):
        assert one.device == two.device
        np.testing.assert_array_equal(one.data, two.data)
