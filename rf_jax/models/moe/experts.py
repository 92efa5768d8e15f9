"""Mixture-of-Transformers: the stream of a token determines its expert group, by static slices.

The three groups are understanding (text and vision), representation and pixels. Each group has a
dense feed-forward or a pool of routed experts; all groups may also share one pool.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict

from rf_jax.models.layers import RMSNorm, SwiGLU, linear_init
from rf_jax.models.moe import dispatch, grouped_matmul
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.runtime.errors import choose, require
from rf_jax.runtime.mesh import BATCH_AXES
from rf_jax.runtime.sharding import axes_of, gathered

GROUPS = ('understanding', 'representation', 'pixels')


class FeedForward(Protocol):
    """The feed-forward half of a block, for the three expert groups; `build` makes it.

    To be called within a linen module, which then owns its parameters.
    """

    def __call__(
        self,
        sharding: TokenSharding,
        lengths: tuple[int, int, int],
        x: jax.Array,
        live: jax.Array,
        normed: bool,
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """x [B, L, D], live bool [B, L] (False for padding) -> (y [B, L, D], losses [B, L]).

        `lengths`: tokens of the groups in the row, in the order of GROUPS; they sum to L. `normed`:
        whether x comes out of a norm; if not, each group norms it with parameters of its own. The
        losses are named (`balance` and `router_z` of routed experts) and may be none.
        """
        ...


def by_group(sharding: TokenSharding, lengths, make: Callable[[str], nn.Module], *x: jax.Array):
    """Applies `make(group)` to each group's tokens of [B, L, ...] arrays and joins the results.

    `lengths` are the token counts of the three groups in the row, in order; they sum to L. A group
    without tokens is not applied, but has parameters, since the model is initialised with a row
    that has tokens of all groups.
    """
    groups = zip(*(sharding.split(a, lengths) for a in x))
    outputs = [make(name)(*own) for name, own in zip(GROUPS, groups) if own[0].shape[1]]
    return jax.tree.map(lambda *own: sharding.join(own), *outputs)


class Dense(nn.Module):
    """Qwen3's SwiGLU; x [B, n, D] and live bool [B, n] -> ([B, n, D], no losses)."""

    config: ConfigDict  # model.backbone
    normed: bool  # whether x comes out of a norm; else it has one of its own

    @nn.compact
    def __call__(self, x: jax.Array, live: jax.Array):
        del live
        x = x if self.normed else RMSNorm(self.config.norm_eps, name='norm')(x)
        return SwiGLU(self.config.feedforward, name='ffn')(x), {}


class Routed(nn.Module):
    """Qwen3's sparse feed-forward: each token goes to `top_k` of `num_experts` SwiGLU experts."""

    config: ConfigDict  # model.backbone
    normed: bool
    product: Callable
    mesh: Mesh | None = None
    table: tuple = ()  # config.sharding

    @nn.compact
    def __call__(self, x: jax.Array, live: jax.Array):
        """x [B, n, D], live bool [B, n] (no padding) -> ([B, n, D], losses per token [B, n])."""
        c = self.config.moe
        x = x if self.normed else RMSNorm(self.config.norm_eps, name='norm')(x)
        width = x.shape[-1]
        into, out = (c.num_experts, width, c.feedforward), (c.num_experts, c.feedforward, width)
        init = nn.initializers.variance_scaling(
            1.0, 'fan_in', 'truncated_normal', in_axis=-2, out_axis=-1, batch_axis=0
        )
        router = self.param('router', linear_init, (width, c.num_experts))
        shapes = {'gate': into, 'up': into, 'down': out}
        weights = tuple(self.param(name, init, shape) for name, shape in shapes.items())
        # In float32, since near ties matter.
        logits = jnp.matmul(x.astype(jnp.float32), router, precision=jax.lax.Precision.HIGHEST)
        routes = dispatch.top_k(logits, live, c.top_k)
        weights = tuple(w.astype(x.dtype) for w in weights)
        y = self._run(weights, x, routes)
        return y, {'balance': routes.balance, 'router_z': routes.z}

    def _run(self, weights, x: jax.Array, routes: dispatch.Routes) -> jax.Array:
        feed_forward = partial(grouped_matmul.swiglu, self.product)
        count, mesh = self.config.moe.num_experts, self.mesh

        def flat(run, weights, x, experts, mix):
            rows = (a.reshape(-1, a.shape[-1]) for a in (x, experts, mix))
            return run(feed_forward, weights, *rows, count).reshape(x.shape)

        arguments = weights, x, routes.experts, routes.weights
        if mesh is None or mesh.size == 1:
            return flat(dispatch.local, *arguments)
        run = dispatch.local
        if mesh.shape['expert'] > 1:
            run = partial(
                dispatch.all_to_all,
                axis='expert',
                axes=mesh.axis_names,
                capacity_factor=self.config.moe.capacity_factor,
            )
        rows = PartitionSpec(BATCH_AXES, 'context')
        axes = [
            axes_of(f'backbone/layers/{self.name}/{name}', w.shape, kept, mesh, self.table)
            for name, w, kept in zip(('gate', 'up', 'down'), weights, KEPT)
        ]
        for axis, dimension in (('expert', 'experts'), ('tensor', 'feed-forward')):
            along = [axis in own[keep.index(axis)] for own, keep in zip(axes, KEPT)]
            ways, may_be_none = mesh.shape[axis], axis == 'tensor'
            require(
                ways == 1 or all(along) or (may_be_none and not any(along)),
                f'sharding: of gate, up and down of backbone/layers/{self.name}, {sum(along)} of 3 '
                f'are sharded over {axis!r} along their {dimension}; with mesh.{axis}={ways}, '
                f'{"all or none" if may_be_none else "all"} of them must be',
            )

        def sharded(weights, *tokens):
            weights = tuple(map(gathered, weights, axes, KEPT))
            y = flat(run, weights, *tokens)
            return jax.lax.psum(y, 'tensor') if 'tensor' in axes[2][1] else y

        return jax.shard_map(
            sharded,
            mesh=mesh,
            in_specs=(tuple(PartitionSpec(*spec) for spec in axes), rows, rows, rows),
            out_specs=rows,
            check_vma=False,  # Pallas kernels do not declare how their outputs vary
        )(*arguments)


# Axes along which gate, up [E, D, F] and down [E, F, D] stay sharded in use, by dimension.
KEPT = (('expert', '', 'tensor'), ('expert', '', 'tensor'), ('expert', 'tensor', ''))


# The pool of experts of a group: its own, or one for all.
POOLS = {'separate': by_group, 'shared': lambda sharding, lengths, make, *x: make('shared')(*x)}


def _dense(config, platform, mesh):
    del platform, mesh
    return partial(Dense, config.model.backbone), by_group


def _moe(config, platform, mesh):
    c, field = config.model.backbone.moe, 'model.backbone.moe'
    require(
        1 <= c.top_k <= c.num_experts,
        f'{field}.top_k={c.top_k} must be between 1 and {field}.num_experts={c.num_experts}',
    )
    ways = mesh.shape['expert'] if mesh is not None else 1
    require(
        c.num_experts % ways == 0,
        f'{field}.num_experts={c.num_experts} is not a multiple of mesh.expert={ways}',
    )
    factor = c.capacity_factor
    require(factor >= 1, f'{field}.capacity_factor={factor} must be at least 1')
    product = grouped_matmul.build(c.grouped_matmul, platform)
    pool = choose(f'{field}.pool', c.pool, POOLS)
    own = {'product': product, 'mesh': mesh, 'table': tuple(config.sharding)}
    return partial(Routed, config.model.backbone, **own), pool


KINDS = {'dense': _dense, 'moe': _moe}


def build(config: ConfigDict, platform: str, mesh: Mesh | None) -> FeedForward:
    """The feed-forward of `config.model.backbone.ffn`. Raises UserError."""
    kind = choose('model.backbone.ffn', config.model.backbone.ffn, KINDS)
    module, pool = kind(config, platform, mesh)

    def feed(sharding: TokenSharding, lengths: tuple, x: jax.Array, live: jax.Array, normed: bool):
        return pool(sharding, lengths, lambda name: module(normed=normed, name=name), x, live)

    return feed
