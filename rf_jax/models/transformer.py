"""The shared backbone: Qwen3's block with three expert groups.

In training, and on disk, the parameters of all layers are one tree of stacks, and the layers are
one loop. XLA copies what such a loop reads of a stack: of no account in training, but decoding
reads every parameter, and the cache, for each token. So generation takes the layers one by one
(`by_layer`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from ml_collections import ConfigDict

from rf_jax.models.attention import Attention
from rf_jax.models.layers import REMAT, Dense, RMSNorm, rotary_angles, rotate
from rf_jax.models.moe import experts
from rf_jax.models.moe.experts import FeedForward, by_group
from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.runtime.errors import choose, require

# KV cache of S tokens, keys and values [B, Hkv, S, Dh] each, as attention reads them: on CPU, XLA
# would transpose another layout for each token.
LayerCache = tuple[jax.Array, jax.Array]
# Of all layers one by one; of stacked layers, one pair with a leading layer axis.
Cache = tuple[LayerCache, ...] | LayerCache


class Projections(nn.Module):
    """Norm, then queries, keys and values with qk-norm: [B, L, D] -> 3 x [B, L, H or Hkv, Dh]."""

    config: ConfigDict

    @nn.compact
    def __call__(self, x: jax.Array):
        c = self.config
        x = RMSNorm(c.norm_eps, name='norm')(x)

        def heads(name, count):
            y = checkpoint_name(Dense(count * c.head_dim, name=name)(x), 'projected')
            return y.reshape(*x.shape[:-1], count, c.head_dim)

        q = RMSNorm(c.norm_eps, name='query_norm')(heads('query', c.heads))
        k = RMSNorm(c.norm_eps, name='key_norm')(heads('key', c.kv_heads))
        return q, k, heads('value', c.kv_heads)


class SharedAttention(nn.Module):
    """Split `ffn` (paper): attention and norms are shared, each group has its own feed-forward."""

    config: ConfigDict
    attend: Attention  # not `attention`: the parameters of the projections have that name
    feed: FeedForward
    sharding: TokenSharding
    lengths: tuple[int, int, int]  # tokens of each expert group in the row

    @nn.compact
    def __call__(self, x, angles, prepared, live, cache, slots):
        c = self.config
        q, k, v = Projections(c, name='attention')(x)
        attended, kept = _attended(self.attend, q, k, v, angles, prepared, cache, slots)
        x = x + checkpoint_name(Dense(c.width, name='output')(attended), 'projected')
        normed = RMSNorm(c.norm_eps, name='ffn_norm')(x)
        y, losses = self.feed(self.sharding, self.of_groups(), normed, live, normed=True)
        return x + y, losses, kept

    def of_groups(self) -> tuple[int, int, int]:
        """Number of tokens for the feed-forward of each group."""
        return self.lengths


class SplitAttention(nn.Module):
    """Split `full` (BAGEL): only the attention product itself is shared."""

    config: ConfigDict
    attend: Attention  # not `attention`: the parameters of the projections have that name
    feed: FeedForward
    sharding: TokenSharding
    lengths: tuple[int, int, int]  # tokens of each expert group in the row

    @nn.compact
    def __call__(self, x, angles, prepared, live, cache, slots):
        c = self.config
        each = partial(by_group, self.sharding, self.lengths)
        q, k, v = each(lambda g: Projections(c, name=f'{g}_attention'), x)
        attended, kept = _attended(self.attend, q, k, v, angles, prepared, cache, slots)
        y = each(lambda g: Dense(c.width, name=f'{g}_output'), attended)
        x = x + checkpoint_name(y, 'projected')
        y, losses = self.feed(self.sharding, self.lengths, x, live, normed=False)
        return x + y, losses, kept


def _attended(
    attend: Attention, q, k, v, angles, prepared, cache: LayerCache | None, slots: jax.Array | None
):
    """Attention over the cache and the tokens themselves, which are written to its `slots`, or
    follow it; gives [B, L, H Dh] and the cache with them, or their own keys and values.
    """
    q, k = rotate(q, angles), rotate(k, angles)
    kept = _swapped(k), _swapped(v)
    if slots is not None:
        rows = jnp.arange(slots.shape[0])[:, None]
        kept = tuple(a.at[rows, :, slots].set(n, mode='drop') for a, n in zip(cache, (k, v)))
        k, v = map(_swapped, kept)
    elif cache is not None:
        k, v = (jnp.concatenate([_swapped(a), n], 1) for a, n in zip(cache, (k, v)))
    attended = attend(q, k, v, prepared)
    return attended.reshape(*attended.shape[:2], -1), kept


def _swapped(x: jax.Array) -> jax.Array:
    """[B, L, Hkv, Dh] to [B, Hkv, L, Dh] and back."""
    return jnp.swapaxes(x, 1, 2)


class Undivided(SharedAttention):
    """Split `none`: all tokens share all parameters, as in a plain transformer."""

    def of_groups(self) -> tuple[int, int, int]:
        return sum(self.lengths), 0, 0


SPLITS = {'ffn': SharedAttention, 'full': SplitAttention, 'none': Undivided}


class Backbone(nn.Module):
    """`layers` blocks and the final norm; layers that are one by one are unrolled."""

    config: ConfigDict
    block: type[nn.Module]
    attention: Attention
    feed: FeedForward
    sharding: TokenSharding
    tapped_layer: int | None  # layer whose output is wanted too

    @nn.compact
    def __call__(
        self,
        x,
        position,
        prepared,
        lengths,
        live=None,
        cache: Cache | None = None,
        slots: jax.Array | None = None,
        keep: bool = False,
    ):
        """x [B, L, D] sharded by `sharding`, position float32 [B, L, 3], cache of S tokens.

        `slots` int32 [B, L]: where these tokens are written in the cache, nowhere if at or after S;
        None: they follow the cached ones. `prepared`: what `prepare` of the attention makes of
        these tokens as queries and, as keys, those of the cache, followed by these without `slots`.
        `lengths`: tokens of the three expert groups; `live` bool [B, L]: tokens that are no
        padding, default all. Gives (x after the final norm, losses of the router float32 [B, L],
        means over the layers, if `keep` the cache with these tokens in their slots, or one of these
        tokens alone without `slots`, and x after layer `tapped_layer`, if any).
        """
        c = self.config
        angles = rotary_angles(position, c.head_dim, c.rope_sections, c.rope_theta)
        block = self.block
        if c.remat != 'none':
            block = nn.remat(block, policy=REMAT[c.remat], prevent_cse=False)
        make = partial(block, c, self.attention, self.feed, self.sharding, lengths, name='layers')
        live = jnp.ones(x.shape[:2], bool) if live is None else live

        def body(module, carried, each):
            (x, tapped), (number, cached) = carried, each
            x = self.sharding.constrain(x)
            x, losses, kept = module(x, angles, prepared, live, cached, slots)
            x = self.sharding.constrain(x)
            tapped = None if tapped is None else jnp.where(number == self.tapped_layer, x, tapped)
            return (x, tapped), (losses, kept if keep else None)

        start = x, None if self.tapped_layer is None else x
        layers = self.get_variable('params', 'layers')
        if isinstance(layers, tuple):
            (x, tapped), losses, kept = _one_by_one(body, make(parent=None), layers, start, cache)
        else:
            stack = nn.scan(
                body,
                variable_axes={'params': 0},
                split_rngs={'params': True},
                in_axes=0,
                out_axes=0,
                length=c.layers,
                unroll=c.unroll,
            )
            numbers = jnp.arange(1, c.layers + 1)
            (x, tapped), (losses, kept) = stack(make(), start, (numbers, cache))
        losses = jax.tree.map(lambda a: a.mean(0), losses)
        return RMSNorm(c.norm_eps, name='norm')(x), losses, kept, tapped


def _one_by_one(body, block: nn.Module, layers, carried, cache: Cache | None):
    """What the scan over `body` gives: (carried, losses [layers, ...], what the layers kept)."""
    losses, kept = [], []
    for i, params in enumerate(layers):
        module = partial(block.apply, {'params': params})
        each = i + 1, None if cache is None else cache[i]
        carried, (own_losses, own_kept) = body(module, carried, each)
        losses.append(own_losses)
        kept.append(own_kept)
    return carried, jax.tree.map(lambda *own: jnp.stack(own), *losses), tuple(kept)


def by_layer(params: Any, unstack: Callable[[Any], Sequence]) -> Any:
    """Parameters of a whole model with the layers of the backbone as a tuple of trees.

    `unstack` gives the parts of all layers of a leaf of the stack.
    """
    leaves, structure = jax.tree.flatten(params['backbone']['layers'])
    layers = tuple(map(structure.unflatten, zip(*map(unstack, leaves))))
    return {**params, 'backbone': {**params['backbone'], 'layers': layers}}


def build(
    config: ConfigDict,
    attention: Attention,
    platform: str,
    sharding: TokenSharding = UNSHARDED,
    tapped_layer: int | None = None,
) -> partial:
    """Backbone of `config.model.backbone` with this attention, ready to be named.

    `tapped_layer`: a layer, counted from 1, whose output is returned as well. Raises UserError.
    """
    c, field = config.model.backbone, 'model.backbone'
    block = choose(f'{field}.split', c.split, SPLITS)
    choose(f'{field}.remat', c.remat, REMAT)
    require(
        c.layers >= 1 and 1 <= c.unroll <= c.layers,
        f'{field}.layers={c.layers} and {field}.unroll={c.unroll}: need 1 <= unroll <= layers',
    )
    require(
        c.heads % c.kv_heads == 0,
        f'{field}.heads={c.heads} is not a multiple of {field}.kv_heads={c.kv_heads}',
    )
    require(
        c.head_dim % 2 == 0
        and len(c.rope_sections) == 3
        and sum(c.rope_sections) == c.head_dim // 2,
        f'{field}.rope_sections={tuple(c.rope_sections)} must be three numbers that sum to '
        f'{field}.head_dim / 2 = {c.head_dim / 2:g}',
    )
    feed = experts.build(config, platform, sharding.mesh)
    return partial(Backbone, c, block, attention, feed, sharding, tapped_layer)
