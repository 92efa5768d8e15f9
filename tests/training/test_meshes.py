"""Training on eight devices, with any mesh, equals training on one."""

import jax
import numpy as np
import pytest
from shrink import tiny_run

from rf_jax.runtime.checkpoint import Checkpoints
from rf_jax.training import optimizer

pytestmark = pytest.mark.slow

MESHES = {
    'one': (1, {}),
    'fsdp': (8, {'mesh.fsdp': 8}),
    'mixed': (8, {'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}),
}
STEPS = 5
SAVED = 3


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """{mesh: (run, losses of steps 1 to 5)}; each saves its state after step 3."""
    found = {}
    for name, (devices, changes) in MESHES.items():
        workdir = tmp_path_factory.mktemp(name)
        run = tiny_run(workdir, {'optimizer.warmup_steps': 1, **changes}, devices)
        state, losses = run.initialise(), []
        for number in range(STEPS):
            state, metrics = run.train_step(state, run.put(run.batches.batch(number)))
            losses.append({k: float(v) for k, v in metrics.items() if not k.startswith('flow_')})
            if number + 1 == SAVED:
                checkpoints = Checkpoints(workdir / 'checkpoints', every=1, keep=1)
                checkpoints.save(SAVED, state)
                checkpoints.close()
        found[name] = run, losses
    return found


def assert_close(found, right):
    assert found.keys() == right.keys() >= {'loss', 'gradient_norm', 'codes_used'}
    for name in right:
        np.testing.assert_allclose(found[name], right[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize('name', ['fsdp', 'mixed'])
def test_losses_are_those_of_one_device(trained, name):
    for found, right in zip(trained[name][1], trained['one'][1]):
        assert_close(found, right)
    assert trained['one'][1][-1]['loss'] < trained['one'][1][0]['loss'], 'nothing was learned'


@pytest.mark.parametrize('source, target', [('one', 'fsdp'), ('fsdp', 'mixed'), ('mixed', 'one')])
def test_a_checkpoint_resumes_on_another_mesh(trained, source, target):
    from_run, _ = trained[source]
    run, losses = trained[target]
    checkpoints = Checkpoints(from_run.workdir / 'checkpoints', every=1, keep=1)
    step, state = checkpoints.restore(run.abstract)
    checkpoints.close()
    assert step == int(state.step) == SAVED
    for found, asked in zip(jax.tree.leaves(state), jax.tree.leaves(run.abstract)):
        assert found.sharding.is_equivalent_to(asked.sharding, found.ndim)
    _, metrics = run.train_step(state, run.put(run.batches.batch(SAVED)))
    assert_close({name: float(metrics[name]) for name in losses[SAVED]}, losses[SAVED])


@pytest.mark.parametrize('name', ['fsdp', 'mixed'])
def test_the_state_is_initialised_sharded(trained, name):
    run, _ = trained[name]
    state = run.initialise()
    for part in (state.params, state.ema, state.opt_state):
        whole = sum(x.nbytes for x in jax.tree.leaves(part))
        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(part))
        # All but the few bytes that no axis divides; most are sharded 2 x 2 on the mixed mesh.
        assert held < whole / (6 if name == 'fsdp' else 3)
    for path, x in zip(optimizer.paths(state.params), jax.tree.leaves(state.params)):
        if path.endswith('kernel'):
            assert x.addressable_shards[0].data.nbytes < x.nbytes, f'{path} stays whole'


def test_build_uses_the_devices_it_is_given(trained):
    run, _ = trained['one']
    assert list(run.mesh.devices.flat) == jax.devices()[:1]
    state = run.initialise()
    assert {d for x in jax.tree.leaves(state) for d in x.sharding.device_set} == {jax.devices()[0]}
    assert trained['fsdp'][0].mesh.devices.size == 8


def test_batch_rows_are_sharded_over_the_data_axes(trained):
    for name, rows in (('one', 8), ('fsdp', 1), ('mixed', 2)):
        run, _ = trained[name]
        batch = run.put(run.batches.batch(0))
        assert {x.addressable_shards[0].data.shape[0] for x in batch.values()} == {rows}
