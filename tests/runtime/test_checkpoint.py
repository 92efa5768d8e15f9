"""No finished checkpoint is ever lost, and restored arrays are bit-identical to the saved ones."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint._src.serialization import serialization

from rf_jax.runtime import checkpoint
from rf_jax.runtime.checkpoint import Checkpoints, restore_numpy
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import make_mesh
from rf_jax.runtime.workdir import check_writable, lock, training_lock, write_run_files

ROOT = Path(__file__).parents[2]


def make_state(step):
    """A small training state with every dtype and optax's nested state."""
    key = jax.random.key(step)
    params = {
        'dense': {'kernel': jax.random.normal(key, (16, 24)), 'bias': jnp.full((8,), -0.0)},
        'half': jax.random.normal(key, (8, 5), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3))
    return {
        'step': jnp.int32(step),
        'params': params,
        'optimizer': optimizer.init(params),
        'seen': jnp.asarray([2**32 - 1, 5], jnp.uint32),
        'decay': jnp.float32(np.nan),
    }


def abstract(tree, layout):
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        layout,
    )


def bits(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.fixture(scope='module')
def one():
    return jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[3]), make_state(0))


@pytest.fixture(scope='module')
def eight():
    mesh = make_mesh({'data': 1, 'fsdp': -1, 'expert': 1, 'tensor': 1, 'context': 1})
    layout = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), make_state(0))
    sharded = NamedSharding(mesh, PartitionSpec('fsdp', None))
    return jax.tree_util.tree_map_with_path(
        lambda path, replicated: sharded if 'kernel' in str(path[-1]) else replicated, layout
    )


@pytest.fixture
def opened(tmp_path):
    made = []

    def make(folder=tmp_path / 'checkpoints', every=1, keep=2, keep_period=0):
        made.append(Checkpoints(folder, every, keep, keep_period))
        return made[-1]

    yield make
    for checkpoints in made:
        checkpoints.close()


def folders(checkpoints):
    return sorted(path.name for path in checkpoints.directory.iterdir())


@pytest.mark.parametrize('saved_on, read_on', [('eight', 'one'), ('one', 'eight')])
def test_restored_bits_are_equal_on_another_mesh(opened, request, saved_on, read_on):
    source, target = (request.getfixturevalue(name) for name in (saved_on, read_on))
    state = jax.device_put(make_state(7), source)
    checkpoints = opened()
    assert checkpoints.restore(abstract(state, target)) is None
    assert checkpoints.save(7, state)
    step, restored = checkpoints.restore(abstract(state, target))
    assert step == 7 and bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    kernel = restored['params']['dense']['kernel']
    assert kernel.sharding == target['params']['dense']['kernel']
    assert len(kernel.addressable_shards) == (8 if read_on == 'eight' else 1)


@pytest.mark.parametrize('layout', ['one', 'eight'])
def test_state_may_be_donated_right_after_save(opened, request, monkeypatch, layout):
    """The writer is blocked until the donated buffers have been overwritten."""
    overwritten, late = threading.Event(), []
    write = serialization.async_serialize_from_host

    async def write_late(*args, **kwargs):
        late.append(overwritten.wait(30))
        return await write(*args, **kwargs)

    monkeypatch.setattr(serialization, 'async_serialize_from_host', write_late)
    layout = request.getfixturevalue(layout)
    state = jax.device_put(make_state(1), layout)
    expected = bits(jax.tree.map(lambda leaf: np.array(leaf, copy=True), make_state(1)))
    overwrite = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 1, tree),
        donate_argnums=0,
        out_shardings=layout,
    )
    target = abstract(state, layout)
    checkpoints = opened()
    checkpoints.save(1, state)
    for _ in range(3):
        state = overwrite(state)
    jax.block_until_ready(state)
    overwritten.set()
    assert checkpoints.wait() and len(late) == len(expected) and all(late)
    assert bits(checkpoints.restore(target)[1]) == expected


def held_back(monkeypatch):
    """An event; whatever is saved is written only once it is set."""
    released, write = threading.Event(), serialization.async_serialize_from_host

    async def write_late(*args, **kwargs):
        assert released.wait(30)
        return await write(*args, **kwargs)

    monkeypatch.setattr(serialization, 'async_serialize_from_host', write_late)
    return released


def test_a_save_does_not_refer_to_state_in_host_memory(opened, eight, monkeypatch):
    """A GPU refuses to donate what is referred to; a CPU donates a copy, at another address."""
    layout = eight['params']['dense']['kernel'].with_memory_kind('pinned_host')
    state = jax.jit(lambda: jnp.arange(1024.0).reshape(64, 16), out_shardings=layout)()
    expected = bits(np.asarray(jax.device_put(state, layout.with_memory_kind('device'))))

    def overwrite(x):
        return jax.device_put(jax.device_put(x, jax.memory.Space.Device) * 0, layout)

    def addresses(x):
        return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]

    overwrite = jax.jit(overwrite, donate_argnums=0, out_shardings=layout)
    released, before = held_back(monkeypatch), addresses(state)
    target = abstract({'offloaded': state}, {'offloaded': layout})
    checkpoints = opened()
    checkpoints.save(1, {'offloaded': state})
    state = overwrite(state)
    assert addresses(state) == before
    released.set()
    restored = checkpoints.restore(target)[1]['offloaded']
    assert restored.sharding.memory_kind == 'pinned_host' and bits(restored) == expected


def test_a_save_may_take_longer_than_orbax_allows_by_default(opened, monkeypatch):
    asked, options = [], ocp.AsyncOptions
    seconds = options().timeout_secs
    monkeypatch.setattr(
        ocp, 'AsyncOptions', lambda **given: asked.append(given) or options(**given)
    )
    opened()
    assert [given['timeout_secs'] for given in asked] == [2 * 60 * 60] and seconds == 20 * 60


def test_restore_numpy_needs_only_the_folder(opened, eight):
    state = jax.device_put(make_state(3), eight)
    checkpoints = opened()
    checkpoints.save(2, make_state(2))
    checkpoints.save(3, state)
    checkpoints.wait()
    before = folders(checkpoints)
    step, tree = restore_numpy(checkpoints.directory)
    assert step == 3 and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
    assert bits(tree['params']) == bits(state['params'])
    assert bits(tree['optimizer'][1][0]['mu']) == bits(state['optimizer'][1][0].mu)
    assert restore_numpy(checkpoints.directory, 2)[1]['step'] == 2
    only = restore_numpy(checkpoints.directory, only='params')[1]
    assert only.keys() == {'params'} and bits(only) == bits(state['params'])
    with pytest.raises(UserError, match=r"no 'ema'; its parts are .*params"):
        restore_numpy(checkpoints.directory, only='ema')
    with pytest.raises(UserError, match=r'No checkpoint of step 9 .*\[2, 3\]'):
        restore_numpy(checkpoints.directory, 9)
    assert folders(checkpoints) == before


def test_checkpoints_are_saved_when_due_and_old_ones_deleted(opened):
    checkpoints = opened(every=5, keep=2, keep_period=15)
    for step in range(1, 31):
        assert checkpoints.due(step) == (step % 5 == 0)
        if checkpoints.due(step):
            checkpoints.save(step, {'a': jnp.ones(3)})
    assert checkpoints.latest_step() == 30
    assert folders(checkpoints) == ['15', '25', '30']
    assert not checkpoints.save(30, {'a': jnp.zeros(3)})  # the end of a run may save again
    assert restore_numpy(checkpoints.directory)[1]['a'].sum() == 3


def test_a_checkpoint_is_due_at_every_step_that_is_to_be_kept(opened):
    """Else only common multiples would be there."""
    checkpoints = opened(every=4, keep=1, keep_period=6)
    for step in range(1, 15):
        if checkpoints.due(step):
            checkpoints.save(step, {'a': jnp.ones(3)})
    assert checkpoints.latest_step() == 12
    assert folders(checkpoints) == ['12', '6']


@pytest.mark.parametrize('damage', ['delete', 'truncate', 'metadata'])
def test_a_damaged_checkpoint_is_renamed_and_the_previous_one_restored(opened, one, caplog, damage):
    target = abstract(make_state(0), one)
    checkpoints = opened(keep=3)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.close()
    item = checkpoints.directory / '2' / 'default'
    largest = max(Path(item).rglob('d/*'), key=lambda path: path.stat().st_size)
    if damage == 'delete':
        largest.unlink()
    elif damage == 'truncate':
        largest.write_bytes(largest.read_bytes()[:20])
    else:
        (item / '_METADATA').write_bytes(b'{"tree')

    checkpoints = opened(keep=3)
    step, state = checkpoints.restore(target)
    assert step == 1 and bits(state) == bits(make_state(1))
    warning = next(r.getMessage() for r in caplog.records if 'cannot be read' in r.getMessage())
    assert str(checkpoints.directory / '2') in warning and '2.corrupt' in warning
    assert folders(checkpoints) == ['1', '2.corrupt'] and checkpoints.latest_step() == 1

    assert checkpoints.due(2) and checkpoints.save(2, make_state(2))
    assert bits(checkpoints.restore(target)[1]) == bits(make_state(2))
    (Path(checkpoints.directory) / '2' / 'default' / 'manifest.ocdbt').unlink()
    assert checkpoints.restore(target)[0] == 1
    assert folders(checkpoints) == ['1', '2.corrupt', '2.corrupt+']


@pytest.mark.parametrize('reason', ['memory', 'disk', 'metadata', 'array'])
def test_a_temporary_read_failure_is_not_treated_as_damage(opened, one, monkeypatch, reason):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.wait()
    item = Path(checkpoints.directory / '2' / 'default')
    fault = {'memory': MemoryError('full'), 'disk': OSError(errno.EIO, 'no answer')}.get(reason)
    with monkeypatch.context() as patch:
        if fault:

            def fail(*_):
                raise fault

            patch.setattr('orbax.checkpoint.PyTreeCheckpointHandler.metadata', fail)
        else:  # root may read anything, so use a link to itself
            largest = max(item.rglob('d/*'), key=lambda path: path.stat().st_size)
            file = item / '_METADATA' if reason == 'metadata' else largest
            file.rename(item.parent / 'kept')
            file.symlink_to(file)
        with pytest.raises(UserError, match=r'checkpoint .*/2 cannot be read now \(\w+Error: '):
            checkpoints.restore(abstract(make_state(0), one))
        with pytest.raises(UserError, match=r'checkpoint .*/2 cannot be read now'):
            restore_numpy(checkpoints.directory)  # not the older one, unnoticed
    assert folders(checkpoints) == ['1', '2']
    if not fault:
        (item.parent / 'kept').replace(file)
    step, state = checkpoints.restore(abstract(make_state(0), one))
    assert step == 2 and bits(state) == bits(make_state(2))


def test_a_run_does_not_start_from_scratch_if_all_checkpoints_are_damaged(opened, one):
    checkpoints = opened()
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.wait()
    for step in (1, 2):
        (Path(checkpoints.directory) / str(step) / 'default' / 'manifest.ocdbt').unlink()
    with pytest.raises(UserError, match=r'(?s)no checkpoint of .*move.*step 2: .*step 1: '):
        checkpoints.restore(abstract(make_state(0), one))
    assert folders(checkpoints) == ['1', '2']


def test_a_checkpoint_of_another_config_is_an_error_not_damage(opened, one):
    checkpoints = opened()
    checkpoints.save(1, make_state(1))
    checkpoints.save(2, make_state(2))
    target = abstract(make_state(0), one)
    target['params']['dense']['kernel'] = jax.ShapeDtypeStruct((16, 25), jnp.float32)
    target['params']['half'] = jax.ShapeDtypeStruct((8, 5), jnp.float32)
    target['params']['new'] = jax.ShapeDtypeStruct((2,), jnp.float32)
    del target['seen']
    with pytest.raises(UserError) as error:
        checkpoints.restore(target)
    for line in (
        'params/dense/kernel: float32[16, 24] in the checkpoint, float32[16, 25] expected',
        'params/half: bfloat16[8, 5] in the checkpoint, float32[8, 5] expected',
        'params/new: absent in the checkpoint, float32[2] expected',
        'seen: uint32[2] in the checkpoint, absent expected',
    ):
        assert line in str(error.value)
    assert 'bias' not in str(error.value) and folders(checkpoints) == ['1', '2']


def test_a_failure_that_is_not_damage_leaves_the_folder_unchanged(opened, one, monkeypatch):
    checkpoints = opened()
    checkpoints.save(1, make_state(1))
    checkpoints.wait()

    def out_of_memory(*_, **__):
        raise ValueError('RESOURCE_EXHAUSTED')

    monkeypatch.setattr('orbax.checkpoint.StandardCheckpointHandler.restore', out_of_memory)
    with pytest.raises(ValueError, match='RESOURCE_EXHAUSTED'):
        checkpoints.restore(abstract(make_state(0), one))
    assert folders(checkpoints) == ['1']


def test_a_full_disk_when_a_save_starts(opened, one, monkeypatch, caplog):
    checkpoints = opened()
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    with monkeypatch.context() as patch:

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(checkpoints._manager._checkpointer, 'save', full)
        assert not checkpoints.save(2, make_state(2))
    assert checkpoints.failures == 1 and 'No space left' in caplog.text
    assert checkpoints.latest_step() == 1
    assert checkpoints.due(3) and checkpoints.save(3, make_state(3)) and checkpoints.wait()
    assert bits(checkpoints.restore(abstract(make_state(0), one))[1]) == bits(make_state(3))


@pytest.mark.parametrize('refusals', [0, 1, 2])
def test_the_last_save_is_retried_once_and_raises_if_it_fails_again(
    opened, one, monkeypatch, caplog, refusals
):
    checkpoints, left = opened(), [1] * refusals
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    save = checkpoints._manager._checkpointer.save

    def full(*given, **named):
        if left:
            left.pop()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(*given, **named)

    monkeypatch.setattr(checkpoints._manager._checkpointer, 'save', full)
    assert checkpoints.save(2, make_state(2)) == (not refusals)
    if refusals == 2:
        with pytest.raises(UserError, match=r'step 2 could not be saved.*newest there: 1\. Free'):
            checkpoints.ensure(2, make_state(2))
    else:
        checkpoints.ensure(2, make_state(2))
    assert caplog.text.count('No space left') == refusals == checkpoints.failures
    newest = 1 if refusals == 2 else 2
    step, state = checkpoints.restore(abstract(make_state(0), one))
    assert step == newest and bits(state) == bits(make_state(newest))


WRITER = """
import os, resource, signal, sys
import jax.numpy as jnp
from rf_jax.runtime.checkpoint import Checkpoints, restore_numpy

folder, job = sys.argv[1:]
whole = lambda: [name for name in os.listdir(folder) if name.isdecimal()]
state = lambda step: {'a': jnp.arange(200_000, dtype=jnp.int32) * 7919 ^ step, 'step': step}
checkpoints = Checkpoints(folder, every=1, keep=1)
step = checkpoints.latest_step() or 0
if job == 'forever':
    while True:
        step += 1
        checkpoints.save(step, state(step))
        print(step, flush=True)
assert checkpoints.save(1, state(1)) and checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
assert checkpoints.save(2, state(2))  # fails in the background
assert not checkpoints.wait() and checkpoints.failures == 1
assert checkpoints.latest_step() == 1 and whole() == ['1']
assert checkpoints.due(3)
checkpoints.save(3, state(3))
assert not checkpoints.wait() and checkpoints.failures == 2
assert restore_numpy(folder)[0] == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
assert checkpoints.due(4) and checkpoints.save(4, state(4)) and checkpoints.wait()
assert restore_numpy(folder)[0] == 4 and whole() == ['4']
checkpoints.close()
"""


def start(folder, job):
    return subprocess.Popen(
        [sys.executable, '-c', WRITER, str(folder), job],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_full_disk_during_a_background_save(tmp_path):
    process = start(tmp_path / 'checkpoints', 'full')
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.count('was NOT saved') == 2
    assert errors.count(os.strerror(errno.EFBIG) + '. Newest there: 1') == 2


def test_a_process_may_be_killed_at_any_time(tmp_path):
    folder = tmp_path / 'checkpoints'
    finished = 0
    for lines in (2, 3, 5):
        process = start(folder, 'forever')
        for _ in range(lines):
            begun = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0].split()
        begun = int(rest[-1]) if rest else begun
        step, tree = restore_numpy(folder)
        # Step `begun` may or may not have reached the disk; the one before it has.
        assert finished < step and begun - 1 <= step <= begun + 1
        expected = np.arange(200_000, dtype=np.int32) * 7919 ^ step
        assert np.array_equal(tree['a'], expected) and tree['step'] == step
        finished = step
    # The next run removes the partial checkpoints that the kills left.
    (folder / '99.orbax-checkpoint-tmp').mkdir()
    checkpoints = Checkpoints(folder, every=1, keep=1)
    assert checkpoints.latest_step() == finished
    checkpoints.save(finished + 1, {'a': jnp.zeros(2)})
    checkpoints.close()
    assert folders(checkpoints) == [str(finished + 1)]


def test_run_files_are_written_atomically(tmp_path, monkeypatch):
    write_run_files(tmp_path / 'run', {'config.json': '{"seed": 0}', 'tokenizer.model': b'\x00'})
    assert json.loads((tmp_path / 'run/config.json').read_text()) == {'seed': 0}
    assert sorted(os.listdir(tmp_path / 'run')) == ['config.json', 'tokenizer.model']

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('os.replace', killed)
    monkeypatch.setattr('os.rename', killed)
    with pytest.raises(KeyboardInterrupt):
        write_run_files(tmp_path / 'run', {'config.json': '{"seed": 1}'})
    assert json.loads((tmp_path / 'run/config.json').read_text()) == {'seed': 0}


def test_an_unwritable_folder_is_a_user_error(tmp_path):
    check_writable(tmp_path / 'new/run')
    assert os.listdir(tmp_path / 'new/run') == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match=r'file/run cannot be written.*--workdir'):
        check_writable(tmp_path / 'file/run')


def test_a_file_system_without_locks_is_a_user_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr('fcntl.flock', refuse)
        with pytest.raises(UserError, match=r'run cannot be locked.*No locks.*--workdir'):
            lock(tmp_path / 'run')
        with training_lock(tmp_path / 'run'):  # training runs without a lock
            pass
    lock(tmp_path / 'run').close()


def test_a_second_training_in_the_same_workdir_is_refused(tmp_path):
    for hold in (lock, training_lock):
        with hold(tmp_path), pytest.raises(UserError, match=rf'trains in {tmp_path}.*--workdir'):
            training_lock(tmp_path)
    with training_lock(tmp_path):
        assert lock(tmp_path) is None


@pytest.mark.parametrize('field', ['every', 'keep'])
def test_numbers_out_of_range(tmp_path, field):
    with pytest.raises(UserError, match=rf'checkpoint\.{field} is 0'):
        Checkpoints(tmp_path, **({'every': 1, 'keep': 1} | {field: 0}))


def test_successful_saves_log_nothing(opened, caplog):
    with caplog.at_level(logging.INFO, logger='absl'):
        checkpoints = opened()
        checkpoints.save(1, make_state(1))
        checkpoints.restore(abstract(make_state(0), jax.tree.map(lambda _: None, make_state(0))))
    assert not caplog.records


def test_a_folder_that_cannot_be_listed_holds_no_run(tmp_path, monkeypatch):
    (tmp_path / 'checkpoints').mkdir()

    def refuse(_):
        raise PermissionError(errno.EACCES, 'spoiled')

    monkeypatch.setattr(os, 'listdir', refuse)
    assert not checkpoint.exists_in(tmp_path)
    with pytest.raises(UserError, match='checkpoints cannot be read'):
        checkpoint.has_step(tmp_path, 1)
