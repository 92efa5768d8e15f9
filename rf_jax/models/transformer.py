"""The shared backbone: Qwen3's block with three expert groups, scanned over layers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rf_jax.models import attention
from rf_jax.models.experts import by_group
from rf_jax.models.layers import Dense, RMSNorm, SwiGLU
from rf_jax.runtime.errors import choose, require

# Keys and values of the cached tokens: [B, S, Hkv, Dh] each, with a leading layer axis outside.
Cache = tuple[jax.Array, jax.Array]

REMAT = {
    'none': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'full': jax.checkpoint_policies.nothing_saveable,
}


class Projections(nn.Module):
    """Norm, then queries, keys and values with qk-norm: [B, L, D] -> 3 x [B, L, H or Hkv, Dh]."""

    config: object

    @nn.compact
    def __call__(self, x: jax.Array):
        c = self.config
        x = RMSNorm(c.norm_eps, name='norm')(x)

        def heads(name, count):
            y = Dense(count * c.head_dim, name=name)(x)
            return y.reshape(*x.shape[:-1], count, c.head_dim)

        q = RMSNorm(c.norm_eps, name='query_norm')(heads('query', c.heads))
        k = RMSNorm(c.norm_eps, name='key_norm')(heads('key', c.kv_heads))
        return q, k, heads('value', c.kv_heads)


class FeedForward(nn.Module):
    """Norm, then the group's SwiGLU; `normed` False when the norm is shared and already done."""

    config: object
    normed: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.normed:
            x = RMSNorm(self.config.norm_eps, name='norm')(x)
        return SwiGLU(self.config.feedforward, name='ffn')(x)


class SharedAttention(nn.Module):
    """Split `ffn`, the paper's: attention and norms are shared, feed-forwards are split."""

    config: object
    lengths: tuple[int, int, int]  # tokens of each expert group in the row
    form: object  # of attention

    @nn.compact
    def __call__(self, x, angles, seen, cache):
        c = self.config
        q, k, v = Projections(c, name='attention')(x)
        attended, kept = _attend(self.form, q, k, v, angles, seen, cache)
        x = x + Dense(c.width, name='output')(attended)
        normed = RMSNorm(c.norm_eps, name='ffn_norm')(x)
        return x + by_group(lambda g: FeedForward(c, False, name=g), self.lengths, normed), kept


class SplitAttention(nn.Module):
    """Split `full`, BAGEL's: only the attention product itself is shared."""

    config: object
    lengths: tuple[int, int, int]  # tokens of each expert group in the row
    form: object  # of attention

    @nn.compact
    def __call__(self, x, angles, seen, cache):
        c = self.config
        q, k, v = by_group(lambda g: Projections(c, name=f'{g}_attention'), self.lengths, x)
        attended, kept = _attend(self.form, q, k, v, angles, seen, cache)
        x = x + by_group(lambda g: Dense(c.width, name=f'{g}_output'), self.lengths, attended)
        return x + by_group(lambda g: FeedForward(c, name=g), self.lengths, x), kept


def _attend(form, q, k, v, angles, seen, cache: Cache | None):
    """Attention over the cache, then the tokens themselves; gives [B, L, H Dh], own (k, v)."""
    q, k = attention.rotate(q, angles), attention.rotate(k, angles)
    kept = (k, v)
    if cache is not None:
        k, v = (jnp.concatenate(pair, 1) for pair in zip(cache, kept))
    attended = form(q, k, v, seen)
    return attended.reshape(*attended.shape[:2], -1), kept


SPLITS = {'ffn': SharedAttention, 'full': SplitAttention}


class Backbone(nn.Module):
    """`layers` blocks and the final norm; the scanned stack is the only form on disk."""

    config: object
    block: type[nn.Module]
    form: object  # of attention
    remat: str = 'none'

    @nn.compact
    def __call__(self, x, position, seen, lengths, cache: Cache | None = None, keep: bool = False):
        """x [B, L, D], position float32 [B, L, 3], cache of S tokens.

        `seen`: what `form.prepare` makes of these L tokens as queries and, as keys, the cached
        ones and these. `lengths`: tokens of the three expert groups. Gives (x after the final norm,
        keys and values of these L tokens [layers, B, L, Hkv, Dh] if `keep` else None).
        """
        c = self.config
        angles = attention.rotary_angles(position, c.head_dim, c.rope_sections, c.rope_theta)
        block = self.block
        if self.remat != 'none':
            block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=False)

        def body(module, x, cached):
            x, kept = module(x, angles, seen, cached)
            return x, kept if keep else None

        stack = nn.scan(
            body,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=0,
            out_axes=0,
            length=c.layers,
            unroll=c.unroll,
        )
        x, kept = stack(block(c, lengths, self.form, name='layers'), x, cache)
        return RMSNorm(c.norm_eps, name='norm')(x), kept


def build(config, form) -> partial:
    """Backbone of `config.model.backbone` with a form of attention, ready to be named.

    Raises UserError.
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
        f'{field}.heads={c.heads} is no multiple of {field}.kv_heads={c.kv_heads}',
    )
    require(
        c.head_dim % 2 == 0
        and len(c.rope_sections) == 3
        and sum(c.rope_sections) == c.head_dim // 2,
        f'{field}.rope_sections={tuple(c.rope_sections)} must be three numbers that sum to '
        f'{field}.head_dim / 2 = {c.head_dim / 2:g}',
    )
    return partial(Backbone, c, block, form, c.remat)
