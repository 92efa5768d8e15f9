"""GPU attention kernels of other libraries, for the one case that all of them support: rows of
packed text documents with causal attention within each document.

`kernel(q, k, v, segment)` with q [B, L, H, Dh], k and v [B, L, Hkv, Dh], segment int32 [B, L] that
counts up from 1 along a row without gaps (no padding) -> [B, L, H, Dh]. No kernel materialises an
L x L mask.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rf_jax.models.attention.blockwise import Blockwise


def text_integers(segment: jax.Array) -> dict[str, jax.Array]:
    """The inputs of `models.attention.masks` for such a row."""
    order = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape)
    return {'segment': segment, 'order': order, 'reach': order, 'block': jnp.zeros_like(segment)}


def blockwise(q, k, v, segment):
    """Our own, in plain XLA; the baseline for the others."""
    attention, integers = Blockwise(512, 512), text_integers(segment)
    return attention(q, k, v, attention.prepare(integers, integers))


def cudnn(q, k, v, segment, most: int = 256):
    """cuDNN with segment lengths and offsets: Hopper or newer, bfloat16, at most `most` documents.

    jax.nn.dot_product_attention accepts lengths but no offsets; JAX's internal binding takes both.
    """
    from jax._src.cudnn import fused_attention_stablehlo as binding

    number = jnp.arange(1, most + 1)
    lengths = jnp.sum(segment[:, :, None] == number, axis=1, dtype=jnp.int32)
    starts = jnp.where(lengths > 0, jnp.cumsum(lengths, axis=1) - lengths, -1)
    offsets = jnp.pad(starts, ((0, 0), (0, 1)), constant_values=-1)
    lengths = jnp.where(lengths > 0, lengths, -1)
    return binding.dot_product_attention(
        q,
        k,
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=q.shape[-1] ** -0.5,
        mask_type=binding.MaskType.PADDING_CAUSAL,
    )


def triton(q, k, v, segment):
    """JAX's Pallas kernel for Triton: takes segment ids; needs as many key heads as query heads."""
    from jax.experimental.pallas.ops.gpu import attention

    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    interpret = jax.default_backend() == 'cpu'
    return attention.mha(q, k, v, segment, q.shape[-1] ** -0.5, True, interpret=interpret)


def tokamax(implementation: str, q, k, v, segment):
    """tokamax with a key range per query, which its public function does not accept."""
    from tokamax._src.ops.attention import api, base

    before = segment != jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1]
    place = jnp.arange(segment.shape[1])
    start = jax.lax.cummax(jnp.where(before, place, 0), axis=1)
    mask = base.Mask(k_start=start[:, None].astype(jnp.int32), is_causal=True)
    return api.IMPLEMENTATIONS[implementation](q, k, v, mask=mask, logits_scale=q.shape[-1] ** -0.5)


KERNELS = {
    'blockwise': blockwise,
    'cudnn': cudnn,
    'triton': triton,
    'tokamax-mosaic': partial(tokamax, 'mosaic_gpu'),
    'tokamax-triton': partial(tokamax, 'triton'),
}
