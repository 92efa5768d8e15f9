"""The shared backbone: Qwen3's block with three expert groups, scanned over layers."""

from functools import partial

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

# KV cache of S tokens: keys and values [B, S, Hkv, Dh] each; outside a layer with a leading layer
# axis.
Cache = tuple[jax.Array, jax.Array]


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
    def __call__(self, x, angles, prepared, live, cache):
        c = self.config
        q, k, v = Projections(c, name='attention')(x)
        attended, kept = _attended(self.attend, q, k, v, angles, prepared, cache)
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
    def __call__(self, x, angles, prepared, live, cache):
        c = self.config
        each = partial(by_group, self.sharding, self.lengths)
        q, k, v = each(lambda g: Projections(c, name=f'{g}_attention'), x)
        attended, kept = _attended(self.attend, q, k, v, angles, prepared, cache)
        y = each(lambda g: Dense(c.width, name=f'{g}_output'), attended)
        x = x + checkpoint_name(y, 'projected')
        y, losses = self.feed(self.sharding, self.lengths, x, live, normed=False)
        return x + y, losses, kept


def _attended(attend: Attention, q, k, v, angles, prepared, cache: Cache | None):
    """Attention over the cache, then the tokens themselves; gives [B, L, H Dh], own (k, v)."""
    q, k = rotate(q, angles), rotate(k, angles)
    kept = (k, v)
    if cache is not None:
        k, v = (jnp.concatenate(pair, 1) for pair in zip(cache, kept))
    attended = attend(q, k, v, prepared)
    return attended.reshape(*attended.shape[:2], -1), kept


class Undivided(SharedAttention):
    """Split `none`: all tokens share all parameters, as in a plain transformer."""

    def of_groups(self) -> tuple[int, int, int]:
        return sum(self.lengths), 0, 0


SPLITS = {'ffn': SharedAttention, 'full': SplitAttention, 'none': Undivided}


class Backbone(nn.Module):
    """`layers` blocks and the final norm; checkpoints always hold the scanned stack."""

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
        keep: bool = False,
    ):
        """x [B, L, D] sharded by `sharding`, position float32 [B, L, 3], cache of S tokens.

        `prepared`: what `prepare` of the attention makes of these L tokens as queries and, as keys,
        the cached ones and these. `lengths`: tokens of the three expert groups; `live` bool
        [B, L]: tokens that are no padding, default all. Gives (x after the final norm, losses of
        the router float32 [B, L], means over the layers, keys and values of these L tokens
        [layers, B, L, Hkv, Dh] if `keep` else None, and x after layer `tapped_layer`, if any).
        """
        c = self.config
        angles = rotary_angles(position, c.head_dim, c.rope_sections, c.rope_theta)
        block = self.block
        if c.remat != 'none':
            block = nn.remat(block, policy=REMAT[c.remat], prevent_cse=False)
        live = jnp.ones(x.shape[:2], bool) if live is None else live

        def body(module, carried, each):
            (x, tapped), (number, cached) = carried, each
            x, losses, kept = module(self.sharding.constrain(x), angles, prepared, live, cached)
            x = self.sharding.constrain(x)
            tapped = None if tapped is None else jnp.where(number == self.tapped_layer, x, tapped)
            return (x, tapped), (losses, kept if keep else None)

        stack = nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=0,
            out_axes=0,
            length=c.layers,
            unroll=c.unroll,
        )
        (x, tapped), (losses, kept) = stack(
            block(c, self.attention, self.feed, self.sharding, lengths, name='layers'),
            (x, None if self.tapped_layer is None else x),
            (jnp.arange(1, c.layers + 1), cache),
        )
        losses = jax.tree.map(lambda a: a.mean(0), losses)
        return RMSNorm(c.norm_eps, name='norm')(x), losses, kept, tapped


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
