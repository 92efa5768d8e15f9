"""Chooses the implementation of attention from the config, with a default for each platform."""

from dataclasses import dataclass

import jax

from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.models.attention.masks import Integers
from rf_jax.models.attention.pallas import Pallas
from rf_jax.models.attention.reference import Cudnn, Reference
from rf_jax.runtime.errors import choose, require


@dataclass(frozen=True)
class ByLength:
    """The first of `choices` (implementation, least Lq, least Lk) that fits, else Reference."""

    choices: tuple[tuple[object, int, int], ...]

    def _form(self, queries: int, keys: int):
        long = (f for f, least_q, least_k in self.choices if queries >= least_q and keys >= least_k)
        return next(long, Reference())

    def prepare(self, query: Integers, key: Integers):
        form = self._form(query['segment'].shape[1], key['segment'].shape[1])
        return form.prepare(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared) -> jax.Array:
        return self._form(q.shape[1], k.shape[1])(q, k, v, prepared)


def _auto(c, platform: str) -> ByLength:
    """Short rows, or a few queries, use the reference, which has no loop."""
    blockwise = Blockwise(c.block_q, c.block_k)
    if platform == 'tpu':
        return ByLength(((_pallas(c, platform), c.block_q, c.block_k),))
    if platform == 'cpu':
        return ByLength(((blockwise, c.block_q, 4097),))
    return ByLength(((blockwise, c.block_q, 8193), (Cudnn(), 128, 128)))


def _pallas(c, platform: str) -> Pallas:
    return Pallas(c.block_q, c.block_k, interpret=platform != 'tpu')


IMPLEMENTATIONS = {
    'auto': _auto,
    'reference': lambda c, platform: Reference(),
    'blockwise': lambda c, platform: Blockwise(c.block_q, c.block_k),
    'pallas': _pallas,
    'cudnn': lambda c, platform: Cudnn(),
}


def build(config, platform: str | None = None):
    """The implementation of `config.model.attention` for cpu, gpu or tpu (None: this process).

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
