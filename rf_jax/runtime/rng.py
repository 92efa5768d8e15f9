"""Random numbers as a function of names, so that no generator state is ever saved."""

import hashlib
import threading

import numpy as np

_LOCAL = threading.local()


def fold(*names: int | str) -> int:
    """A 64-bit hash of the names and their order."""
    text = '\x1f'.join(f'{type(name).__name__}:{name}' for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little')


def generator(*names: int | str) -> np.random.Generator:
    """A generator seeded with `fold(*names)`; equal names give equal numbers on every host."""
    return np.random.Generator(np.random.Philox(key=fold(*names)))


def reused_generator(*names: int | str) -> np.random.Generator:
    """Like `generator(*names)`, but far cheaper; valid only until the next call in this thread."""
    if not hasattr(_LOCAL, 'generator'):
        _LOCAL.generator = generator('')
        _LOCAL.state = _LOCAL.generator.bit_generator.state
    _LOCAL.state['state']['key'][0] = fold(*names)
    _LOCAL.generator.bit_generator.state = _LOCAL.state
    return _LOCAL.generator
