"""Random numbers as a function of names, so that no generator state is ever saved: of numpy, and of
jax.random, which is imported only where it is used, as data/ and scenes/ work without jax.
"""

import hashlib
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax

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


def random_key(seed: int, name: str, step: 'jax.Array | int' = 0) -> 'jax.Array':
    """The jax.random key of `name` at `step`; other names, seeds and steps give unrelated keys."""
    import jax

    return jax.random.fold_in(jax.random.key(fold(seed, name) % 2**32), step)
