"""Checkpoints in buckets of real emulators: saved, kept, cleaned up, damaged, taken over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rf_jax.runtime import checkpoint, checkpoint_folder, checkpoint_slices, storage
from rf_jax.runtime.errors import Unavailable, UserError

pytestmark = pytest.mark.slow

STATE = {'ema': {'w': jnp.arange(3000.0).reshape(30, 100)}, 'step': jnp.int32(7)}


@pytest.fixture(autouse=True)
def _no_long_wait(monkeypatch):
    """After a failed save a thread of Orbax waits so long, and this process for the thread."""
    from orbax.checkpoint._src.multihost import multihost

    monkeypatch.setattr(multihost, 'coordination_timeout', lambda: 20)


@pytest.fixture
def folder(bucket, tmp_path):
    return storage.as_epath(f'{bucket[0]}/{tmp_path.name}/checkpoints')


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def save(folder, *steps, keep=2):
    checkpoints = checkpoint.Checkpoints(folder, every=1, keep=keep)
    for step in steps:
        checkpoints.save(step, {**STATE, 'step': jnp.int32(step)})
    assert checkpoints.wait()
    return checkpoints


def test_saved_kept_and_read_by_every_reader(folder):
    save(folder, 1, 2, 3).close()
    assert checkpoint_folder.steps(folder) == [2, 3] == [int(x) for x in storage.names(folder)]
    step, state = checkpoint.Checkpoints(folder, 1, 2).restore(abstract())
    assert step == 3 and int(state['step']) == 3
    np.testing.assert_array_equal(state['ema']['w'], STATE['ema']['w'])
    step, arrays = checkpoint.restore_numpy(folder, only='ema')
    np.testing.assert_array_equal(arrays['ema']['w'], STATE['ema']['w'])
    part = checkpoint_slices.arrays(folder.parent, 3, 'ema')['w'][3:5]
    np.testing.assert_array_equal(part, STATE['ema']['w'][3:5])
    assert checkpoint.exists_in(folder.parent) and checkpoint.has_step(folder.parent, 2)
    assert not checkpoint.has_step(folder.parent, 1)


def test_a_run_that_was_copied_from_a_disk_goes_on(folder, tmp_path):
    save(tmp_path / 'checkpoints', 1, 2).close()
    storage.copy(tmp_path / 'checkpoints', folder)
    assert checkpoint_folder.steps(folder) == [1, 2]
    _, arrays = checkpoint.restore_numpy(folder, only='ema')
    np.testing.assert_array_equal(arrays['ema']['w'], STATE['ema']['w'])
    checkpoints = save(folder, 3)
    assert checkpoint_folder.steps(folder) == [2, 3]
    assert checkpoints.restore(abstract())[0] == 3


def test_an_unfinished_checkpoint_is_not_read_and_goes_away(folder):
    save(folder, 1, 2).close()
    storage.delete(folder / '2' / checkpoint_folder.COMMIT_FILE)
    assert checkpoint_folder.steps(folder) == [1]
    checkpoints = checkpoint.Checkpoints(folder, 1, 2)
    assert checkpoints.latest_step() == 1 and storage.names(folder) == ['1']
    checkpoints.save(2, STATE)
    checkpoints.ensure(2, STATE)
    assert checkpoint_folder.steps(folder) == [1, 2]


def test_a_damaged_checkpoint_is_set_aside(folder):
    save(folder, 1, 2).close()
    for name in storage.names(folder / '2' / 'default' / 'd'):
        storage.delete(folder / '2' / 'default' / 'd' / name)
    step, _ = checkpoint.Checkpoints(folder, 1, 2).restore(abstract())
    assert step == 1
    assert storage.names(folder) == ['1', '2.corrupt']
    assert checkpoint.Checkpoints(folder, 1, 2).restore(abstract())[0] == 1


def test_a_bucket_that_refuses_is_no_damage(folder, bucket):
    save(folder, 1, 2).close()
    checkpoints = checkpoint.Checkpoints(folder, 1, 2)
    bucket[1].fail('403', path='default')
    with pytest.raises(UserError, match='cannot be read now'):
        checkpoints.restore(abstract())
    bucket[1].heal()
    assert storage.names(folder) == ['1', '2']


@pytest.mark.parametrize('kind', ['503', 'truncate'])
def test_faults_that_pass_lose_nothing(folder, bucket, kind):
    proxy = bucket[1]
    checkpoints = checkpoint.Checkpoints(folder, 1, 2)
    proxy.fail(kind, times=3, path='ocdbt')
    assert checkpoints.save(1, STATE) and checkpoints.wait() and not checkpoints.failures
    proxy.fail(kind, times=3, path='default')
    _, state = checkpoints.restore(abstract())
    np.testing.assert_array_equal(state['ema']['w'], STATE['ema']['w'])


def test_a_save_that_is_refused_is_logged_and_the_next_one_is_kept(folder, bucket, caplog):
    checkpoints = save(folder, 1)
    bucket[1].fail('403', path='default')
    checkpoints.save(2, STATE)
    assert not checkpoints.wait() or checkpoints.failures == 1
    assert checkpoints.failures == 1 and 'step 2 was NOT saved' in caplog.text
    bucket[1].heal()
    assert checkpoints.save(3, STATE) and checkpoints.wait()
    assert checkpoint_folder.steps(folder) == [1, 3]


def test_the_newest_process_owns_the_checkpoints(folder):
    first = save(folder, 1)
    second = save(folder, 2)
    with pytest.raises(UserError, match='another process has begun to train in'):
        first.save(3, STATE)
    assert second.save(3, STATE) and second.wait()
    assert checkpoint_folder.steps(folder) == [2, 3]


def test_an_orbax_that_is_built_otherwise_is_refused_in_one_line(monkeypatch):
    from orbax.checkpoint._src.path import gcs_utils

    pytest.importorskip('gcsfs')
    pytest.importorskip('s3fs')
    monkeypatch.delattr(gcs_utils, '_rf_jax_s3', raising=False)
    monkeypatch.delattr(gcs_utils, 'get_kvstore_for_gcs')
    with pytest.raises(UserError, match='cannot be written to s3:// with orbax-checkpoint'):
        checkpoint_folder.of('s3://bucket/run/checkpoints')


def test_a_failure_of_the_clean_up_does_not_end_the_run(folder, monkeypatch):
    checkpoints = save(folder, 1)

    class HttpError(Exception):
        """As gcsfs raises: no OSError."""

    def fail(*_, **__):
        raise HttpError('spoiled')

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, 'discard', fail)
        patch.setattr(checkpoints._manager, 'reload', fail)
        patch.setattr(checkpoints._manager, 'save', fail)
        assert not checkpoints.save(2, STATE) and checkpoints.failures == 1
        with pytest.raises(Unavailable, match='Run the same command again'):
            checkpoints.ensure(2, STATE)
    assert checkpoints.save(3, STATE) and checkpoints.wait()


def test_a_refused_look_at_the_owner_is_no_other_owner(folder, bucket):
    claim = checkpoint_folder.Claim(folder)
    bucket[1].fail('403')
    claim.check()


def test_metadata_of_the_bucket_that_is_refused_is_one_line(folder, bucket):
    if not str(folder).startswith('gs://'):
        pytest.skip('only Google has it')
    bucket[1].fail('403')
    with pytest.raises(UserError, match=r'storage\.buckets\.get, as in roles/storage\.legacy'):
        checkpoint_folder.take_over(folder)


def test_a_folder_that_orbax_cannot_open_is_one_line(folder, bucket, monkeypatch):
    take_over = checkpoint_folder.take_over

    def then_fail(directory):
        claim = take_over(directory)
        bucket[1].fail('403')
        return claim

    monkeypatch.setattr(checkpoint_folder, 'take_over', then_fail)
    with pytest.raises(Unavailable, match=r'checkpoints: Orbax cannot open it \(.+\)$'):
        checkpoint.Checkpoints(folder, 1, 2)


def test_only_the_newest_checkpoints_are_looked_at(folder, monkeypatch):
    for step in (1, 2, 3):
        storage.write(folder / str(step) / 'file', b'')
        if step < 3:
            storage.write(folder / str(step) / checkpoint_folder.COMMIT_FILE, b'')
    looked, exists = [], storage.exists
    monkeypatch.setattr(storage, 'exists', lambda path: looked.append(path) or exists(path))
    assert checkpoint_folder.newest(folder) == 2 and len(looked) == 2
    assert checkpoint_folder.has(folder, 1) and not checkpoint_folder.has(folder, 3)
