"""Chooses the implementation of attention from the config, with a default for each platform."""

from dataclasses import dataclass

import jax
from ml_collections import ConfigDict

from rf_jax.models.attention import Attention
from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.models.attention.masks import Integers
from rf_jax.models.attention.pallas import Pallas
from rf_jax.models.attention.reference import Cudnn, Reference
from rf_jax.models.attention.triton import Triton
from rf_jax.runtime.errors import choose, require


@dataclass(frozen=True)
class ByLength:
    """The first of `choices` (attention, least Lq and Lk) that the shapes reach, else reference."""

    choices: tuple[tuple[Attention, int, int], ...]

    def _choice(self, queries: int, keys: int) -> Attention:
        long = (a for a, least_q, least_k in self.choices if queries >= least_q and keys >= least_k)
        return next(long, Reference())

    def prepare(self, query: Integers, key: Integers):
        attention = self._choice(query['segment'].shape[1], key['segment'].shape[1])
        return attention.prepare(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        return self._choice(q.shape[1], k.shape[1])(q, k, v, prepared)


def _auto(c, platform: str) -> ByLength:
    """Short rows and few queries take the reference: one product instead of a loop."""
    if platform == 'tpu':
        return ByLength(((_pallas(c, platform), c.block_q, c.block_k),))
    if platform == 'cpu':
        return ByLength(((Blockwise(c.block_q, c.block_k), c.block_q, 4097),))
    # cuDNN's mask of all pairs gets too large, and XLA's loops move too much memory.
    return ByLength(((Triton(), 128, 8193), (Cudnn(), 128, 128)))


def _pallas(c, platform: str) -> Pallas:
    return Pallas(c.block_q, c.block_k, interpret=platform != 'tpu')


IMPLEMENTATIONS = {
    'auto': _auto,
    'reference': lambda c, platform: Reference(),
    'blockwise': lambda c, platform: Blockwise(c.block_q, c.block_k),
    'pallas': _pallas,
    'cudnn': lambda c, platform: Cudnn(),
    'triton': lambda c, platform: Triton(interpret=platform != 'gpu'),
}


def build(config: ConfigDict, platform: str | None = None) -> Attention:
    """The attention of `config.model.attention` for cpu, gpu or tpu; None: where this process runs.

    Raises UserError.
    """
    c, field = config.model.attention, 'model.attention'
    for name in ('block_q', 'block_k'):
        require(
            c[name] > 0 and c[name] % 128 == 0,
            f'{field}.{name}={c[name]} must be a positive multiple of 128',
        )
    make = choose(f'{field}.implementation', c.implementation, IMPLEMENTATIONS)
    return make(c, platform or jax.default_backend())
