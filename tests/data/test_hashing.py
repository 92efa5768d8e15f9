import numpy as np

from rf_jax.data.hashing import uniform


def test_the_number_of_one_sequence_is_that_of_an_array():
    index, epoch = np.array([0, 7, 2**40, 3]), np.array([0, 1, 2, 2**33])
    for count in (1, 4):
        found = uniform(2**63 + 5, index[:count], epoch[:count], draw=3)
        one = [uniform(2**63 + 5, *at, draw=3) for at in zip(index.tolist(), epoch.tolist())]
        assert found.tolist() == one[:count] and len(set(one)) == 4


def test_numbers_are_uniform():
    found = uniform(1, np.arange(10**5), draw=0)
    assert 0 < found.min() < 1e-4 and 0.9999 < found.max() < 1
    np.testing.assert_allclose(np.histogram(found, 10, (0, 1))[0], 10**4, rtol=0.05)
