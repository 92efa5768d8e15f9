"""DINOv3's vision transformer for packed images of any size, and the connector."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.data.layout import NEVER
from rf_jax.models.attention import Attention
from rf_jax.models.layers import GELU, REMAT, Dense, LayerNorm, SwiGLU, rotate
from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.runtime.errors import require


class EncoderBlock(nn.Module):
    """Pre-norm block with layer scale; query, value and output have biases, key does not. DINOv3's
    7B has none in query and value either (`query_value_bias` False).
    """

    config: ConfigDict  # model.encoder, or model.autoencoder
    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array, angles: jax.Array, prepared) -> jax.Array:
        c = self.config
        scale = nn.initializers.constant(c.layer_scale)
        y = LayerNorm(c.norm_eps, name='attention_norm')(x)

        def heads(name, use_bias):
            return Dense(c.width, use_bias, name=name)(y).reshape(*y.shape[:-1], c.heads, -1)

        bias = c.get('query_value_bias', True)  # the autoencoder and older runs have no field
        q, k, v = heads('query', bias), heads('key', False), heads('value', bias)
        y = self.attention(rotate(q, angles), rotate(k, angles), v, prepared)
        y = Dense(c.width, True, name='output')(y.reshape(x.shape))
        x = x + y * self.param('attention_scale', scale, (c.width,)).astype(x.dtype)
        y = LayerNorm(c.norm_eps, name='ffn_norm')(x)
        ffn = (
            SwiGLU(c.feedforward, True, name='ffn') if c.gated else GELU(c.feedforward, name='ffn')
        )
        return x + ffn(y) * self.param('ffn_scale', scale, (c.width,)).astype(x.dtype)


class VisionEncoder(nn.Module):
    """Patches of several images in a row to features; images do not attend to each other.

    Each image has its own class token and registers before its patches, as in DINOv3.
    """

    config: ConfigDict  # model.encoder, or model.autoencoder
    attention: Attention
    sharding: TokenSharding = UNSHARDED

    @nn.compact
    def __call__(self, patches, image, coords, images: int):
        """patches [B, P, C] in [-1, 1], image int32 [B, P] (-1 none), coords float32 [B, P, 2].

        `images`: largest number of images in a row. Returns features [B, P, D] of the last
        layer before the final norm, and the same after it.
        """
        c = self.config
        rows = patches.shape[0]
        x = self.sharding.constrain(Dense(c.width, True, name='patch_embed')(patches))
        prefix = self.param('class_and_registers', nn.initializers.normal(0.02),
                            (1 + c.registers, c.width))  # fmt: skip
        extra = images * (1 + c.registers)
        tokens = jnp.broadcast_to(prefix.astype(x.dtype), (rows, images, *prefix.shape))
        sizes = extra, x.shape[1]
        x = self.sharding.join([tokens.reshape(rows, extra, c.width), x])
        owner = jnp.repeat(jnp.arange(images, dtype=image.dtype), 1 + c.registers)
        owner = self.sharding.join([jnp.broadcast_to(owner, (rows, extra)), image])
        integers = integers_of(owner)
        prepared = self.attention.prepare(integers, integers)
        angles = self._angles(coords)
        unrotated = jnp.zeros((rows, extra, angles.shape[-1]))
        angles = self.sharding.join([unrotated, angles])

        x = run_layers(EncoderBlock, c, self.attention, self.sharding, x, angles, prepared)
        normed = LayerNorm(c.norm_eps, name='norm')(x)
        return self.sharding.split(x, sizes)[1], self.sharding.split(normed, sizes)[1]

    def _angles(self, coords: jax.Array) -> jax.Array:
        """2 pi x coordinate x theta^(-4j / Dh) for rows, then columns: [B, P, Dh / 2]."""
        head_dim = self.config.width // self.config.heads
        exponents = jnp.arange(head_dim // 4, dtype=jnp.float32) * 4 / head_dim
        frequency = 2 * jnp.pi * self.config.rope_theta**-exponents
        return (coords[..., None] * frequency).reshape(*coords.shape[:-1], -1)

    @staticmethod
    def check(config: ConfigDict, field: str) -> None:
        """Raises UserError for a width that rotary positions cannot turn."""
        require(
            config.heads > 0 and config.width % (4 * config.heads) == 0,
            f'{field}.width={config.width} is not a multiple of 4 x {field}.heads={config.heads}, '
            'as its rotary positions need',
        )

    @staticmethod
    def own_tokens(config: ConfigDict) -> int:
        """Tokens of each image beside its patches: its class token and registers."""
        return 1 + config.registers

    @staticmethod
    def token_flops(config: ConfigDict) -> float:
        """Forward FLOPs of a token in the products of all layers, without attention's."""
        ffn = (3 if config.gated else 2) * config.width * config.feedforward
        return 2.0 * config.layers * (4 * config.width**2 + ffn)

    @staticmethod
    def embed_flops(config: ConfigDict, channels: int) -> float:
        """Forward FLOPs of a patch of C values before the layers."""
        return 2.0 * channels * config.width


def run_layers(
    block: type[nn.Module],
    config: ConfigDict,
    attention: Attention,
    sharding: TokenSharding,
    x: jax.Array,
    *constants,
) -> jax.Array:
    """x [B, L, D] after all layers of a tower, whose parameters are stacked as `layers`; called in
    the tower. Each is block(config, attention)(x, *constants).
    """
    if config.remat != 'none':
        block = nn.remat(block, policy=REMAT[config.remat], prevent_cse=False)

    def body(block, x, _):
        return sharding.constrain(block(sharding.constrain(x), *constants)), None

    stack = nn.scan(body, variable_axes={'params': 0}, split_rngs={'params': True},
                    length=config.layers, unroll=config.unroll)  # fmt: skip
    return stack(block(config, attention, name='layers'), x, None)[0]


def integers_of(owner: jax.Array) -> dict[str, jax.Array]:
    """Integers of `attention.masks` with which each image attends to itself.

    owner int32 [B, L]: the image of each token, -1 none; numpy or jax, like the result.
    """
    xp = owner.__array_namespace__()
    real = owner >= 0
    return {
        'segment': owner + 1,
        'order': xp.where(real, 0, NEVER),
        'reach': xp.where(real, 0, -1),
        'block': xp.zeros_like(owner),
    }


def pool(x: jax.Array, side: int = 2) -> jax.Array:
    """Mean over groups of side x side consecutive tokens: [B, side^2 N, D] -> [B, N, D]."""
    return x.reshape(x.shape[0], -1, side**2, x.shape[-1]).mean(2)


class Connector(nn.Module):
    """2x2 pooling and a two-layer MLP from encoder features (after the final norm) to tokens."""

    width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = Dense(self.width, True, name='up')(pool(features))
        return Dense(self.width, True, name='down')(nn.gelu(x))
