"""Attention: the mask rule, the protocol of an implementation, and the implementations.

An implementation has two parts. `prepare(query, key)` runs once per step: from the integers of
`masks.py`, [B, Lq] and [B, Lk], to a tree of arrays with leading axis B. The call runs once per
layer: from q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] and that tree to [B, Lq, H, Dh], with softmax
in float32. `select.py` chooses one; all others are tested against `reference.py`.
"""

from typing import Any, Protocol

import jax

from rf_jax.models.attention.masks import Integers


class Attention(Protocol):
    """Grouped-query attention by the rule of `masks`: a frozen dataclass without parameters.

    The two steps are apart so that what depends on the rule alone is computed once, not in every
    layer.
    """

    def prepare(self, query: Integers, key: Integers) -> Any:
        """What `__call__` needs of the rule: a mask, or lists of tiles.

        The integers are int32 [B, Lq] and [B, Lk], by the names of `masks.FIELDS`. Gives a tree of
        arrays; the backbone hands it to its layers unread.
        """
        ...

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, prepared: Any) -> jax.Array:
        """q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh] -> [B, Lq, H, Dh], in the dtype of q.

        Logits are scaled by 1 / sqrt(Dh); softmax is in float32. H is a multiple of Hkv.
        """
        ...
