"""Grouped matrix products: rows sorted by group, and one matrix per group.

`product(x [M, D], w [E, D, F], sizes int32 [E]) -> [M, F]`: the first sizes[0] rows are multiplied
by w[0], the next sizes[1] rows by w[1], and so on. Rows beyond the sum of `sizes` are undefined.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox

from rf_jax.models.moe import triton
from rf_jax.runtime.errors import choose


def ragged(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """XLA's ragged product, on every backend; on CPU and GPU it costs E dense products."""
    return jax.lax.ragged_dot(x, w, sizes)


def kernel(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """The Pallas kernels for TPU that come with JAX.

    XLA's ragged product on TPU computes the gradient of w as E dense products (libtpu 0.0.42: 6
    times the FLOPs of forward and backward at E = 16); these kernels do not.
    """
    count = x.shape[0]
    x = jnp.pad(x, ((0, -count % 8), (0, 0)))  # unused rows, up to the smallest tile
    rows = next(tile for tile in (512, 256, 128, 64, 32, 16, 8) if x.shape[0] % tile == 0)
    tiling = (rows, min(1024, x.shape[1]), min(1024, w.shape[2]))
    return megablox.gmm(x, w, sizes, preferred_element_type=x.dtype, tiling=tiling)[:count]


def on_gpu(x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
    """The kernel for GPUs, or XLA's product for widths that do not divide into its tiles."""
    divides = all(width % triton.LEAST == 0 for width in w.shape[1:])
    return (triton.product if divides else ragged)(x, w, sizes)


KERNELS = {'tpu': kernel, 'gpu': triton.product}
AUTO = {'tpu': kernel, 'gpu': on_gpu}


def build(name: str, platform: str):
    """The product called `name`; 'auto' is the kernel where there is one. Raises UserError."""
    products = {
        'auto': AUTO.get(platform, ragged),
        'ragged': ragged,
        'kernel': KERNELS.get(platform, kernel),
    }
    return choose('model.backbone.moe.grouped_matmul', name, products)


def swiglu(product, gate, up, down, x: jax.Array, mix: jax.Array, sizes: jax.Array) -> jax.Array:
    """mix * down(silu(gate x) * up x) with the expert of each row: [M, D].

    gate and up [E, D, F], down [E, F, D], mix [M]. Rows beyond the sum of `sizes` are undefined, as
    is their gradient for x; they contribute to no other gradient. The weight of a row multiplies
    before `down`: F is less than D, and its gradient then does not need the output of `down`, so
    the backward pass of a recomputed layer computes one product of three less.
    """
    mix = jnp.where(jnp.arange(x.shape[0]) < sizes.sum(), mix, 0)
    gated = jax.nn.silu(checkpoint_name(product(x, gate, sizes), 'gate'))
    up = checkpoint_name(product(x, up, sizes), 'up')
    return product(gated * up * mix[:, None].astype(x.dtype), down, sizes)
