"""Cross-entropy over a large vocabulary without materialising the logits of all tokens.

Tokens go through the head in tiles, and the gradients of a tile are computed together with its
loss, as in Liger Kernel's fused linear cross-entropy (arXiv 2410.10989): nothing is recomputed, and
only the gradients of the hidden states and of the kernel are kept for the backward pass.
"""

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rf_jax.models.layers import Logits, product
from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.runtime.mesh import BATCH_AXES
from rf_jax.runtime.sharding import Axes, axes_of, gathered, scattered

TILE = 2**26  # logits per tile on one device, 256 MB; fewer logits are computed without tiles
TOKENS = (*BATCH_AXES, 'context')
KEPT = ('', 'tensor')  # a head stays sharded along its vocabulary


def of_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """float32 [..., V] and int32 [...] -> [...] in nats; targets below 0 read entry 0."""
    picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - picked


@dataclass(frozen=True)
class CrossEntropy:
    """On the mesh of `sharding`, with kernels sharded by `table`, which is config.sharding.

    `tile`: the largest number of logits that a device holds at a time.
    """

    sharding: TokenSharding = UNSHARDED
    table: tuple = ()
    tile: int = TILE

    def __call__(
        self, path: str, logits: Logits, targets: jax.Array, weight: jax.Array
    ) -> jax.Array:
        """Sum over the tokens of weight times cross-entropy, a float32 scalar.

        path: parameter path of the head's kernel; targets int32 [B, n]; weight float32 [B, n],
        through which no gradient flows.
        """
        sharded = self.sharding.mesh is not None and self.sharding.mesh.size > 1
        mesh, shape = self.sharding.mesh, logits.kernel.shape
        axes = axes_of(path, shape, KEPT, mesh, self.table) if sharded else ((), ())
        split = [axis for axis in axes[1] if axis in KEPT]  # other parts are gathered
        devices = math.prod(mesh.shape[axis] for axis in (*TOKENS, *split)) if sharded else 1
        tiles = -(-targets.size * shape[1] // (devices * self.tile))
        if tiles <= 1:
            whole = self.sharding.constrain(logits.whole(), 'tensor')
            return jnp.sum(of_logits(whole, targets) * weight)
        head = _Head(mesh if sharded else None, axes, tiles)
        return _tiled(head, logits.hidden, logits.kernel, targets, jax.lax.stop_gradient(weight))


ONE_DEVICE = CrossEntropy()


@dataclass(frozen=True)
class _Head:
    """A kernel [D, V] sharded over `axes` of `mesh` (None: one device); tokens in `tiles` tiles."""

    mesh: jax.sharding.Mesh | None
    axes: Axes
    tiles: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tiled(head: _Head, hidden, kernel, targets, weight) -> jax.Array:
    return _run(head, (False, False), hidden, kernel, targets, weight)[0]


def _forward(head, *arguments):
    hidden, kernel, targets, weight = (a.value for a in arguments)
    needed = tuple(a.perturbed for a in arguments[:2])
    loss, *gradients = _run(head, needed, hidden, kernel, targets, weight)
    return loss, gradients


def _backward(head, gradients, scale):
    def scaled(gradient):
        return (scale * gradient.astype(jnp.float32)).astype(gradient.dtype)

    return *jax.tree.map(scaled, tuple(gradients)), None, None


_tiled.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(head: _Head, needed: tuple[bool, bool], hidden, kernel, targets, weight):
    """(loss, gradient of hidden, gradient of kernel); None for gradients that are not needed."""
    if head.mesh is None:
        return _tiles(head.tiles, needed, '', hidden, kernel.astype(hidden.dtype), targets, weight)
    split = 'tensor' if 'tensor' in head.axes[1] else ''

    def local(hidden, kernel, *tokens):
        whole = gathered(kernel.astype(hidden.dtype), head.axes, KEPT)
        loss, of_hidden, of_kernel = _tiles(head.tiles, needed, split, hidden, whole, *tokens)
        if of_kernel is not None:
            of_kernel = scattered(of_kernel, head.axes, KEPT, TOKENS)
        # Scatter before the backward pass of the layers starts, not after it.
        of_hidden, of_kernel = jax.lax.optimization_barrier((of_hidden, of_kernel))
        return jax.lax.psum(loss, TOKENS), of_hidden, of_kernel

    tokens, kept = PartitionSpec(BATCH_AXES, 'context'), PartitionSpec(*head.axes)
    run = jax.shard_map(
        local,
        mesh=head.mesh,
        in_specs=(tokens, kept, tokens, tokens),
        out_specs=(PartitionSpec(), tokens, kept),
        check_vma=False,  # a sum over `tensor` is the same on each of its devices
    )
    return run(hidden, kernel, targets, weight)


def _tiles(tiles: int, needed, split: str, hidden, kernel, targets, weight):
    """As `_run`, for a device's tokens and its part of the vocabulary, sharded over `split`."""
    count, width = targets.size, hidden.shape[-1]
    size = -(-count // (16 * tiles)) * 16  # a multiple of the bfloat16 sublanes

    def tiled(a, *rest):
        a = a.reshape(count, *rest)
        a = jnp.pad(a, ((0, tiles * size - count), *((0, 0) for _ in rest)))
        return a.reshape(tiles, size, *rest)

    def add(total, tile):
        loss, of_logits = _tile(kernel, split, *tile)
        of_hidden = of_kernel = None
        if needed[0]:
            of_hidden = product(of_logits, kernel.T)
            of_hidden = (jax.lax.psum(of_hidden, split) if split else of_hidden).astype(
                hidden.dtype
            )
        if needed[1]:
            of_kernel = total[1] + product(tile[0].T, of_logits)
        return (total[0] + loss, of_kernel), of_hidden

    zero = jnp.zeros(()), jnp.zeros(kernel.shape) if needed[1] else None
    (loss, of_kernel), of_hidden = jax.lax.scan(
        add, zero, (tiled(hidden, width), tiled(targets), tiled(weight))
    )
    if needed[0]:
        of_hidden = of_hidden.reshape(-1, width)[:count].reshape(hidden.shape)
    return loss, of_hidden, of_kernel


def _tile(kernel, split: str, hidden, targets, weight):
    """(weighted loss of tokens [n, D], its gradient for logits [n, V] in the dtype of hidden)."""
    logits = product(hidden, kernel)
    start = jax.lax.axis_index(split) * logits.shape[1] if split else 0
    here = jnp.arange(logits.shape[1]) == (jnp.maximum(targets, 0) - start)[:, None]

    def over_vocabulary(reduce, across, values):
        found = reduce(values, axis=-1)
        return across(found, split) if split else found

    top = over_vocabulary(jnp.max, jax.lax.pmax, logits)
    exponentials = jnp.exp(logits - top[:, None])
    total = over_vocabulary(jnp.sum, jax.lax.psum, exponentials)
    picked = over_vocabulary(jnp.sum, jax.lax.psum, jnp.where(here, logits, 0))
    loss = jnp.sum(weight * (jnp.log(total) + top - picked))
    gradient = exponentials * (weight / total)[:, None] - jnp.where(here, weight[:, None], 0)
    return loss, gradient.astype(hidden.dtype)
