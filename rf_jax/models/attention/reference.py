"""Plain attention, and cuDNN's fused attention: both use a mask [B, Lq, Lk]."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rf_jax.models.attention.masks import MASKED, Integers, visible


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention with a mask, softmax in float32; the reference implementation.

    q [B, Lq, H, Dh], k and v [B, Lk, Hkv, Dh], mask bool [B, Lq, Lk] -> [B, Lq, H, Dh].
    """
    rows, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    # The query heads of a group are concatenated along the queries, so that each product has one
    # batch axis less and reads k and v once: on CPU, XLA's backward pass is twice as fast.
    q = q.reshape(rows, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(rows, kv_heads, group * length, head_dim)
    logits = jnp.einsum('bkqd,bskd->bkqs', q, k, preferred_element_type=jnp.float32)
    mask = jnp.tile(mask, (1, group, 1))[:, None]
    weights = jax.nn.softmax(jnp.where(mask, logits * head_dim**-0.5, MASKED), axis=-1)
    out = jnp.einsum('bkqs,bskd->bkqd', weights.astype(v.dtype), v)
    out = out.reshape(rows, kv_heads, group, length, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, head_dim)


@dataclass(frozen=True)
class Reference:
    """With a mask [B, Lq, Lk] and logits [B, H, Lq, Lk] in memory."""

    def prepare(self, query: Integers, key: Integers) -> jax.Array:
        return visible(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        return attend(q, k, v, mask)


@dataclass(frozen=True)
class Cudnn:
    """cuDNN's fused attention through jax.nn: no logits in memory, but a mask.

    The mask is bool [B, Lq, Lk], and cuDNN turns it into a bias in the dtype of q: 128 MB for a row
    of 8,192 tokens. It supports half precision and heads of at most 128 that are a multiple of 8;
    other inputs use the reference. Odd lengths, which its backward pass rejects, are padded by one
    token.
    """

    implementation: str = 'cudnn'

    def prepare(self, query: Integers, key: Integers) -> jax.Array:
        return visible(query, key)

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        if self.implementation == 'cudnn' and not _supported(q):
            return attend(q, k, v, mask)
        length = q.shape[1]

        def even(x, *axes):
            return jnp.pad(x, [(0, x.shape[a] % 2 if a in axes else 0) for a in range(x.ndim)])

        q, k, v, mask = even(q, 1), even(k, 1), even(v, 1), even(mask[:, None], 2, 3)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=self.implementation)
        return out[:, :length]


def _supported(q: jax.Array) -> bool:
    """Whether cuDNN takes these queries on every card since Ampere."""
    return q.dtype != jnp.float32 and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0
