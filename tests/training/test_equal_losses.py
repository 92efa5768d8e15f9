"""Ten steps of a model with routed experts, equal for any mesh, loop and implementation."""

import jax
import numpy as np
import pytest
from shrink import shrink, tiny_run

from configs import base
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

STEPS = 10
CONFIG = {
    'data.batch_size': 8,
    'optimizer.warmup_steps': 1,
    'optimizer.learning_rate': 3e-4,  # with a larger one, rounding errors grow past the tolerance
    'losses.balance': 0.01,
    'losses.router_z': 0.001,
    'model.backbone.ffn': 'moe',
    'model.backbone.moe.num_experts': 4,
    'model.backbone.moe.feedforward': 16,
    'data.capacity.representation': 12,
    'data.capacity.pixels': 32,
    'data.capacity.vision': 8,
    'data.capacity.vision_images': 4,
    'data.capacity.pixel_images': 4,
}
WAYS = {
    'fsdp': (8, {}),
    'tensor': (8, {'mesh.tensor': 2}),
    'expert': (8, {'mesh.expert': 4}),
    'context': (8, {'mesh.context': 4}),
    'data, expert and context': (8, {'mesh.data': 2, 'mesh.expert': 2, 'mesh.context': 2}),
    'tensor and context': (8, {'mesh.tensor': 2, 'mesh.context': 2}),
    'one pool': (8, {'model.backbone.moe.pool': 'shared', 'mesh.expert': 2}),
    'state of the host': (2, {'offload': ('ema', 'opt_state')}),
    'unrolled': (1, {'model.backbone.unroll': 2, 'model.encoder.unroll': 2}),
    'recomputed': (1, {'model.backbone.remat': 'attention'}),
    'accumulated': (1, {'optimizer.grad_accum_steps': 4}),
    'accumulated on a mesh': (2, {'optimizer.grad_accum_steps': 4, 'mesh.expert': 2}),
    'blockwise': (
        1,
        {'model.attention.implementation': 'blockwise', 'model.attention.block_k': 128},
    ),
}
NIGHTLY = ('tensor', 'expert', 'context', 'unrolled', 'recomputed', 'accumulated', 'blockwise')
SAME_MODEL = {'one pool': {'model.backbone.moe.pool': 'shared'}}


def losses(workdir, changes, devices):
    run = tiny_run(workdir, CONFIG | changes, devices)
    state, found = run.initialise(), []
    for number in range(STEPS):
        state, metrics = run.train_step(state, run.put(run.batches.batch(number)))
        found.append({k: float(v) for k, v in metrics.items() if not k.startswith('flow_')})
    return found


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    """Losses on one device, by the changes to the model."""
    known = {}

    def of(name):
        changes = SAME_MODEL.get(name, {})
        key = str(changes)
        if key not in known:
            known[key] = losses(tmp_path_factory.mktemp('single'), changes, 1)
        return known[key]

    return of


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=pytest.mark.nightly) if n in NIGHTLY else n for n in WAYS],
)
def test_losses_of_ten_steps_are_equal(name, single, tmp_path):
    devices, changes = WAYS[name]
    found, wanted = losses(tmp_path, changes, devices), single(name)
    for a, b in zip(found, wanted):
        assert a.keys() == b.keys() >= {'loss', 'balance', 'router_z', 'gradient_norm'}
        for metric in b:
            np.testing.assert_allclose(a[metric], b[metric], rtol=1e-4, err_msg=metric)
    assert wanted[-1]['loss'] < wanted[0]['loss']


def test_a_mesh_initialises_what_one_device_does(tmp_path):
    found = []
    for devices, mesh in ((1, {}), (8, {'mesh.tensor': 2, 'mesh.expert': 2})):
        config = shrink(base.get_config())
        config.update_from_flattened_dict(CONFIG | mesh)
        run = train_loop.build(config, tmp_path / str(devices), jax.devices()[:devices])
        found.append(jax.device_get(run.initialise()))
    one, eight = map(jax.tree.leaves, found)
    assert all((a == b).all() for a, b in zip(one, eight, strict=True))


def test_jax_has_the_devices_that_this_file_needs():
    assert jax.device_count() >= 8
