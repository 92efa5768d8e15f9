"""GPU attention kernels of other libraries, on the one case that all of them can express: rows of
text, packed one document after another, each token seeing its own document up to itself.

`kernel(q, k, v, segment)` with q [B, L, H, Dh], k and v [B, L, Hkv, Dh], segment int32 [B, L] that
counts up from 1 along a row without gaps (no padding) -> [B, L, H, Dh]. None holds an L x L mask.
"""

from functools import partial

import jax
import jax.numpy as jnp

from rf_jax.models.attention.blockwise import Blockwise


def text_integers(segment: jax.Array) -> dict[str, jax.Array]:
    """What `models.attention.masks` reads of such a row."""
    order = jnp.broadcast_to(jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape)
    return {'segment': segment, 'order': order, 'reach': order, 'block': jnp.zeros_like(segment)}


def blockwise(q, k, v, segment):
    """Ours, in plain XLA: what the others are compared with."""
    form, integers = Blockwise(512, 512), text_integers(segment)
    return form(q, k, v, form.prepare(integers, integers))


def cudnn(q, k, v, segment, most: int = 256):
    """cuDNN with segment lengths and offsets: Hopper or later, bfloat16, `most` documents a row.

    jax.nn.dot_product_attention passes lengths on, but no offsets: JAX's own binding takes both.
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
    """JAX's Pallas kernel for Triton: segment ids, as many key heads as query heads."""
    from jax.experimental.pallas.ops.gpu import attention

    group = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, group, axis=2) for x in (k, v))
    interpret = jax.default_backend() == 'cpu'
    return attention.mha(q, k, v, segment, q.shape[-1] ** -0.5, True, interpret=interpret)


def tokamax(implementation: str, q, k, v, segment):
    """tokamax: a first and a last key for each query; its public function takes no such ranges."""
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
