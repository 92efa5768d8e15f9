"""slots.py: the other process reads what was written, and nothing is overwritten before that."""

import multiprocessing
import os
import pickle

import numpy as np

from rf_jax.data.slots import Slots

LIKE = {'pixels': np.zeros((2, 5, 3), np.uint8), 'position': np.zeros((2, 7), np.float32)}


def batch(number):
    return {name: np.full_like(each, number) for name, each in LIKE.items()}


def written(slots, count):
    """How many of `count` batches there was room for, from the first on."""
    return [slots.write(number, batch(number)) for number in range(count)].count(True)


def test_another_process_writes_what_is_read_here():
    slots = Slots(LIKE, 4)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        assert pool.apply(written, (slots, 5)) == 3
    for number in range(3):
        for name, each in batch(number).items():
            found = slots.read(number)[name]
            assert found.dtype == each.dtype
            np.testing.assert_array_equal(found, each)
    slots.close()


def test_a_slot_is_reused_when_its_batch_and_the_next_have_been_read():
    slots = Slots(LIKE, 3)
    there = pickle.loads(pickle.dumps(slots))
    assert written(there, 2) == 2
    kept = slots.read(0)['position']
    slots.done(0)
    assert there.write(2, batch(2)) and not there.write(3, batch(3))
    assert (kept == 0).all()
    slots.done(1)
    assert there.write(3, batch(3))
    assert (kept == 3).all() and (slots.read(1)['pixels'] == 1).all()
    slots.close()


def test_without_shared_memory_there_is_no_room(monkeypatch):
    monkeypatch.delattr(os, 'memfd_create')  # as on macOS
    slots = Slots(LIKE, 3)
    there = pickle.loads(pickle.dumps(slots))
    assert not there.write(0, batch(0))
    slots.done(0)
    slots.close()


def test_closing_leaves_no_file_open():
    free = os.dup(0)  # the lowest descriptor that is free
    os.close(free)
    for _ in range(3):
        Slots(LIKE, 3).close()
    after = os.dup(0)
    os.close(after)
    assert after == free
