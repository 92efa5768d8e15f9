"""The mesh has the asked sizes, and says which field is wrong."""

import types

import jax
import numpy as np
import pytest

from rf_jax.runtime import mesh as mesh_lib
from rf_jax.runtime.errors import UserError


def sizes(**changes):
    return {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | changes


def test_rest_goes_to_the_axis_of_minus_one():
    mesh = mesh_lib.make_mesh(sizes(fsdp=-1, tensor=2))
    assert dict(mesh.shape) == sizes(fsdp=4, tensor=2)
    assert set(mesh.devices.flat) == set(jax.devices())
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_given_devices_only():
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


def test_rows_are_cut_along_data_fsdp_and_expert():
    mesh = mesh_lib.make_mesh(sizes(data=2, fsdp=2, tensor=2))
    batch = jax.device_put(np.arange(8 * 3).reshape(8, 3), mesh_lib.batch_sharding(mesh))
    assert {shard.data.shape for shard in batch.addressable_shards} == {(2, 3)}
    assert len({shard.index[0].start for shard in batch.addressable_shards}) == 4


def test_rows_must_divide():
    mesh = mesh_lib.make_mesh(sizes(data=2, fsdp=2, tensor=2))
    mesh_lib.check_rows(12, mesh)
    for rows in (6, 0):
        with pytest.raises(UserError, match=rf'data\.rows is {rows}.*multiple of 4'):
            mesh_lib.check_rows(rows, mesh)


def pretended_slices(count, each):
    return [
        types.SimpleNamespace(
            id=i, slice_index=i // each, process_index=i // each, platform='cpu', device_kind='cpu'
        )
        for i in range(count * each)
    ]


def test_only_data_crosses_slices():
    devices = pretended_slices(2, 4)
    arranged = mesh_lib._arrange((4, 2, 1, 1, 1), devices)
    for part, slice_index in ((arranged[:2], 0), (arranged[2:], 1)):
        assert {device.slice_index for device in part.flat} == {slice_index}
    with pytest.raises(UserError, match=r'mesh\.data is 1.*2 slices'):
        mesh_lib._arrange((1, 8, 1, 1, 1), devices)


@pytest.mark.parametrize(
    ('shape', 'each', 'share'),
    [
        ({'fsdp': 8}, 2, (0, 4)),
        ({'fsdp': 2, 'context': 4}, 2, (0, 2)),  # two processes feed the same rows
        ({'fsdp': 4, 'tensor': 2}, 4, (0, 2)),
        ({'fsdp': 8}, 8, (0, 1)),
    ],
)
def test_processes_feed_the_rows_that_their_devices_hold(shape, each, share):
    devices = [types.SimpleNamespace(process_index=i // each) for i in range(8)]
    mesh = types.SimpleNamespace(
        shape=sizes(**shape), devices=np.array(devices).reshape([*sizes(**shape).values()])
    )
    assert mesh_lib.share_of_rows(mesh) == share


def test_rows_that_do_not_stand_together_are_refused():
    devices = [types.SimpleNamespace(process_index=i % 2) for i in range(8)]
    mesh = types.SimpleNamespace(
        shape=sizes(fsdp=8), devices=np.array(devices).reshape(1, 8, 1, 1, 1)
    )
    with pytest.raises(UserError, match='do not stand together'):
        mesh_lib.share_of_rows(mesh)
