"""Forward and backward attention on one GPU, timed and compared with the reference."""

from functools import partial

import gpu_kernels
import jax
import jax.numpy as jnp
import numpy as np
from gpu_measure import counted_memory, report, seconds, share, summary

from rf_jax.data import typical_row
from rf_jax.models.attention import masks, reference, select

LENGTHS = (4096, 8192, 16_384)  # tokens per row
TPU_ONLY = ('pallas',)


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
    kernel = gpu_kernels.KERNELS[name]
    for length in (256,) if tiny else LENGTHS:
        segment = segments(length)
        for dtype in (jnp.bfloat16, jnp.float32):
            attend = partial(_run_packed, kernel, segment)
            compare(f'packed {name}', gpu_kernels.text_integers(segment), attend, dtype, tiny)


def _run_packed(kernel, segment, q, k, v):
    return kernel(q, k, v, segment)


def segments(length: int) -> jax.Array:
    """Segment ids int32 [1, L], counting up from 1."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(min(64, length // 16), min(1024, length // 4) + 1, length)
    starts = np.searchsorted(np.cumsum(sizes), np.arange(length), side='right')
    return jnp.asarray(starts[None] + 1, jnp.int32)
