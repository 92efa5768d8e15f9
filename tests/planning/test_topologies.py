"""Every known TPU topology starts, and each process gets exactly the rows of its own devices.

Devices are libtpu's own where it is installed, else what it was recorded to give (topologies.py).
"""

import copy
import functools
import math
from collections import Counter

import numpy as np
import pytest
import topologies

from configs import base
from rf_jax.data import lanes, pipeline, source_list
from rf_jax.data.packing import plan
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.runtime import mesh as meshes
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks


@pytest.fixture(scope='module')
def batches_of(tmp_path_factory):
    """rows -> (batches of a single process, the first of them)."""
    path = tmp_path_factory.mktemp('text') / 'words.txt'
    path.write_text('\n\n'.join(f'the sentence of number {i}' for i in range(50)))
    found = source_list.build(f'text:{path}', 10**6)
    tokenizer = SentencePieceTokenizer.train([path.read_text()], 300)

    @functools.cache
    def make(rows):
        config = base.get_config()
        config.data.update(sources=f'text:{path}', batch_size=rows, max_text_tokens=16)
        config.data.tasks.update(text_to_image=0.0, image_to_text=0.0, text_only=1.0)
        config.data.capacity.update(text=16, vision=0, representation=0, pixels=0,
                                    vision_images=0, pixel_images=0)  # fmt: skip
        made = pipeline.Batches(config, found, tokenizer)
        return made, made.batch(0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, 'LEAST', 64)  # windows of one step
        yield make


def assert_fed_by_what_is_held(mesh, rows, shares):
    """`shares` are the rows that JAX itself assigns to the devices of each process."""
    where = meshes.batch_sharding(mesh).devices_indices_map((rows,))
    assert len(where) == mesh.size
    held = {device.process_index: set() for device in where}
    copies = Counter()
    for device, (index,) in where.items():
        each = range(*index.indices(rows))
        held[device.process_index].update(each)
        copies.update(each)
    replicas = mesh.shape['tensor'] * mesh.shape['context']
    assert copies == dict.fromkeys(range(rows), replicas)
    assert {process: set(share.tolist()) for process, share in shares.items()} == held
    assert all((np.diff(share) > 0).all() for share in shares.values())


def assert_batches_are_those_of_one_process(made, whole, shares):
    for share in {tuple(share.tolist()) for share in shares.values()}:
        own = copy.copy(made)
        own.rows = np.array(share)
        for name, array in own.batch(0).items():
            np.testing.assert_array_equal(array, whole[name][own.rows], err_msg=name)


def fits(mesh, count, slices):
    """Whether this many devices can form the mesh, with tensor and context inside a slice."""
    inside = mesh.tensor * mesh.context
    fixed = math.prod(size for size in mesh.values() if size > 0)
    return count % fixed == 0 and count // slices % inside == 0


@pytest.mark.parametrize('topology', topologies.NAMES)
@pytest.mark.parametrize('slices', topologies.SLICES)
def test_every_config_starts_and_each_row_is_built_once_per_replica(topology, slices, batches_of):
    devices = topologies.devices(topology, slices)
    assert len(devices) == slices * math.prod(map(int, topology.split(':')[1].split('x')))
    seen = set()
    for name in topologies.CONFIGS:
        config = topologies.config_for(name, len(devices))
        if not fits(config.mesh, len(devices), slices):
            with pytest.raises(UserError, match=r'mesh\.\w+=\d+.*(multiple of|slices)'):
                checks.start(config, devices)
            continue
        key = (*config.mesh.items(), config.data.batch_size)
        mesh, shares = checks.start(config, devices)
        for share in shares.values():
            lanes.check_rows(config.data, share)
        if key in seen:
            continue
        seen.add(key)
        assert_fed_by_what_is_held(mesh, config.data.batch_size, shares)
        assert_batches_are_those_of_one_process(*batches_of(config.data.batch_size), shares)


@pytest.mark.parametrize('topology', topologies.NAMES)
@pytest.mark.parametrize('slices', topologies.SLICES)
def test_the_recorded_devices_are_those_of_libtpu(topology, slices):
    """Without libtpu the table is only compared with itself."""
    found = topologies.devices(topology, slices)
    assert topologies.columns(found) == topologies.columns(topologies.recorded(topology, slices))
    hosts = {device.process_index for device in found}
    assert hosts == set(range(slices * max(1, len(found) // slices // 4)))
