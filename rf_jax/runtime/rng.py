"""Random numbers as a function of names: nothing random is ever saved (rule 9 of the design)."""

import hashlib
import threading

import numpy as np

_OWN = threading.local()


def fold(*names: int | str) -> int:
    """A 64-bit integer that depends on every name and on their order."""
    text = '\x1f'.join(f'{type(name).__name__}:{name}' for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'little')


def generator(*names: int | str) -> np.random.Generator:
    """A generator for `fold(*names)`; equal names give equal streams on every host."""
    return np.random.Generator(np.random.Philox(key=fold(*names)))


def passing_generator(*names: int | str) -> np.random.Generator:
    """As `generator(*names)`, but only until this thread asks for the next; far cheaper."""
    if not hasattr(_OWN, 'generator'):
        _OWN.generator = generator('')
        _OWN.begin = _OWN.generator.bit_generator.state
    _OWN.begin['state']['key'][0] = fold(*names)
    _OWN.generator.bit_generator.state = _OWN.begin
    return _OWN.generator
