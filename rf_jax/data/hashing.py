"""Random numbers as hashes of arrays, so that those of a billion samples need no memory."""

import numpy as np


def hash64(x: np.ndarray) -> np.ndarray:
    """A hash uint64 -> uint64 in which every bit depends on all bits (SplitMix64).

    Steele et al., "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over='ignore'):  # arithmetic modulo 2**64 is intended
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hash_one(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def uniform(key: int, *numbers: np.ndarray | int, draw: int) -> np.ndarray | float:
    """float64[S] in (0, 1): number `draw` of the sequence that belongs to (key, *numbers).

    `numbers`: integers [S], or of one sequence alone, which gives a float.
    """
    if isinstance(numbers[0], int):  # arrays of one take forty times as long
        state = key
        for number in (*numbers, draw):
            state = _hash_one(state ^ number % 2**64)
        return ((state >> 12) + 0.5) / 2**52
    state = np.full(len(numbers[0]), key, np.uint64)
    for number in (*numbers, np.uint64(draw)):
        state = hash64(state ^ np.asarray(number, np.uint64))
    return ((state >> np.uint64(12)).astype(float) + 0.5) / 2**52
