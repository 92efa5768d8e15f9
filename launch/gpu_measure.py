"""What the GPU trial measures with: timing and reporting, one JSON line per result; and attention,
forward and backward, against the reference and GPU kernels of other libraries.

Those are called for the one case that all of them support: rows of packed text documents with
causal attention within each document. `kernel(q, k, v, segment)` with q [B, L, H, Dh], k and v
[B, L, Hkv, Dh], segment int32 [B, L] that counts up from 1 along a row without gaps (no padding) ->
[B, L, H, Dh]. No kernel materialises an L x L mask.
"""

import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rf_jax.data import typical_row
from rf_jax.models.attention import masks, reference, select
from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.runtime import hardware

LENGTHS = (4096, 8192, 16_384)  # tokens per row
TPU_ONLY = ('pallas',)


def report(what: str, settings: str, **values) -> None:
    print(json.dumps({'what': what, 'settings': settings, **values}), flush=True)


def summary(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:160]


def seconds(run, times: int = 10) -> float:
    """Median of `times` runs, after one warm-up run that compiles."""
    jax.block_until_ready(run())
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run())
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def gigabytes(number) -> str:
    return '' if number is None else f'{number / 1e9:.1f} GB'


def share(done: float, took: float) -> str:
    peak = hardware.peak_flops(jax.devices()[0])
    return f'{done / took / peak:.1%}' if peak else 'peak unknown'


def counted_memory(compiled) -> dict[str, str]:
    """Memory by the compiler: the sum of all buffers, and its own peak."""
    counted = compiled.memory_analysis()
    total = counted.argument_size_in_bytes + counted.output_size_in_bytes
    total += counted.temp_size_in_bytes - counted.alias_size_in_bytes
    return {
        'counted: arguments, outputs, temporaries': gigabytes(total),
        "counted: compiler's peak": gigabytes(getattr(counted, 'peak_memory_in_bytes', None)),
    }


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


def arrays(length: int, heads: int, kv_heads: int, width: int, dtype):
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(0)
    shapes = heads, kv_heads, kv_heads, heads
    return [jnp.asarray(rng.normal(size=(1, length, n, width)), dtype) for n in shapes]


def forward_backward(attend, q, k, v, g):
    """(output, gradients of q, k and v)."""
    out, pull = jax.vjp(attend, q, k, v)
    return out, *pull(g)


def compare(what: str, tokens, attend, dtype, tiny: bool) -> None:
    """Times `attend(q, k, v)` forward and backward, and compares some heads with the reference."""
    length = tokens['segment'].shape[1]
    heads, kv_heads, width = (2, 1, 32) if tiny else (16, 8, 128)  # as in Qwen3-0.6B
    inputs = arrays(length, heads, kv_heads, width, dtype)
    sees = masks.visible(tokens, tokens).any(-1)[..., None, None]  # excludes padding
    inputs[3] = jnp.where(sees, inputs[3], 0)
    some_heads = [x[:, :, : max(1, x.shape[2] // kv_heads)].astype(jnp.float32) for x in inputs]
    settings = f'row of {length:,}, {jnp.dtype(dtype).name}'
    try:
        compiled = jax.jit(partial(forward_backward, attend)).lower(*inputs).compile()
        took = seconds(lambda: compiled(*inputs), 1 if tiny else 10)
        outputs = compiled(*inputs)
    except Exception as error:  # of any library: report it and continue
        report(what, settings, failed=summary(error))
        return
    exact = partial(_reference, masks.visible(tokens, tokens))
    with jax.default_matmul_precision('highest'):
        expected = jax.jit(partial(forward_backward, exact))(*some_heads)
    errors = []
    for a, b in zip(outputs, expected):
        a = jnp.where(sees, a[:, :, : b.shape[2]], 0).astype(jnp.float32)
        errors.append(float(jnp.abs(a - jnp.where(sees, b, 0)).max() / jnp.abs(b).max()))
    row = {name: np.asarray(x[0]) for name, x in tokens.items()}
    total = 3.5 * 4 * typical_row.visible_pairs(row) * heads * width
    report(
        what,
        settings,
        time=f'{took * 1e3:.2f} ms',
        rate=f'{total / took / 1e12:.1f} TFLOP/s',
        **{'share of peak': share(total, took), 'largest error': f'{max(errors):.1e}'},
        **counted_memory(compiled),
    )


def _reference(mask, q, k, v):
    return reference.attend(q, k, v, mask)


def implementation(tiny: bool, name: str, config_of) -> None:
    """An attention implementation on rows with images, packed as in training.

    `config_of(size, tiny, tokens)` returns the config of these rows.
    """
    if name in TPU_ONLY:
        report(f'attention {name}', 'TPU only', failed='skipped: a kernel for another platform')
        return
    for length in (1024,) if tiny else LENGTHS:
        config = config_of('0.6B', tiny, length)
        row = typical_row.row(config)
        tokens = {field: jnp.asarray(row[field][None]) for field in masks.FIELDS}
        for dtype in (jnp.bfloat16, jnp.float32):
            attention = select.IMPLEMENTATIONS[name](config.model.attention, jax.default_backend())
            attend = partial(_run, attention, tokens)
            compare(f'attention {name}', tokens, attend, dtype, tiny)


def _run(attention, tokens, q, k, v):
    return attention(q, k, v, attention.prepare(tokens, tokens))


def packed(tiny: bool, name: str) -> None:
    """A kernel on rows of text: documents of 64 to 1,024 tokens."""
    kernel = KERNELS[name]
    for length in (256,) if tiny else LENGTHS:
        segment = segments(length)
        for dtype in (jnp.bfloat16, jnp.float32):
            attend = partial(_run_packed, kernel, segment)
            compare(f'packed {name}', text_integers(segment), attend, dtype, tiny)


def _run_packed(kernel, segment, q, k, v):
    return kernel(q, k, v, segment)


def segments(length: int) -> jax.Array:
    """Segment ids int32 [1, L], counting up from 1."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(min(64, length // 16), min(1024, length // 4) + 1, length)
    starts = np.searchsorted(np.cumsum(sizes), np.arange(length), side='right')
    return jnp.asarray(starts[None] + 1, jnp.int32)
