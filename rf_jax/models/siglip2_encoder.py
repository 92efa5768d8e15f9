"""SigLIP2's vision transformer (NaFlex; arXiv 2502.14786) for packed images of any size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models import packed_images
from rf_jax.models.attention import Attention
from rf_jax.models.layers import GELU, Dense, LayerNorm, flat_product
from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.models.vision_encoder import integers_of, run_layers
from rf_jax.runtime.errors import require


class Siglip2Block(nn.Module):
    """Pre-norm block with a bias in every projection, and a GELU by its tanh formula."""

    config: ConfigDict  # model.encoder
    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array, prepared) -> jax.Array:
        c = self.config
        y = LayerNorm(c.norm_eps, name='attention_norm')(x)

        def heads(name):
            return Dense(c.width, True, name=name)(y).reshape(*y.shape[:-1], c.heads, -1)

        y = self.attention(heads('query'), heads('key'), heads('value'), prepared)
        x = x + Dense(c.width, True, name='output')(y.reshape(x.shape))
        y = LayerNorm(c.norm_eps, name='ffn_norm')(x)
        return x + GELU(c.feedforward, approximate=True, name='ffn')(y)


class PositionTable(nn.Module):
    """A learned side x side table of positions, resized to the size of each image."""

    side: int
    features: int

    @nn.compact
    def __call__(self, image: jax.Array, coords: jax.Array, images: int) -> jax.Array:
        """Arguments as of `Siglip2Encoder`; float32 [B, P, D]."""
        table = self.param(
            'table', nn.initializers.normal(self.features**-0.5), (self.side**2, self.features)
        )
        rows, columns = jnp.moveaxis(resize_weights(image, coords, images, self.side), -2, 0)
        weights = rows[..., :, None] * columns[..., None, :]
        return flat_product(weights.reshape(*image.shape, -1), table)


def resize_weights(image: jax.Array, coords: jax.Array, images: int, side: int) -> jax.Array:
    """float32 [B, P, 2, side]: the weights with which each patch reads the rows and the columns of
    a side x side table that is resized to its image.

    Bilinear with antialias, corners not aligned, as torch's `interpolate` and transformers.
    """
    at, size = packed_images.cells(image, coords, images)
    step = side / size  # of the table, from a patch to the next
    centre = (at + 0.5) * step - 0.5
    distance = jnp.abs(centre[..., None] - jnp.arange(side, dtype=jnp.float32))
    weights = jnp.maximum(1 - distance / jnp.maximum(step, 1.0)[..., None], 0.0)
    return weights / weights.sum(-1, keepdims=True)


class Siglip2Encoder(nn.Module):
    """Patches of several images in a row to features, called as `VisionEncoder`.

    It has a learned table of positions, and neither class token, registers, rotary positions nor
    layer scale.
    """

    config: ConfigDict  # model.encoder
    attention: Attention
    sharding: TokenSharding = UNSHARDED

    @nn.compact
    def __call__(self, patches, image, coords, images: int):
        """patches [B, P, C] in [-1, 1], image int32 [B, P] (-1 none), coords float32 [B, P, 2].

        `images`: largest number of images in a row. Returns features [B, P, D] of the last
        layer before the final norm, and the same after it.
        """
        c = self.config
        x = Dense(c.width, True, name='patch_embed')(patches)
        table = PositionTable(c.position_grid, c.width, name='position')
        x = self.sharding.constrain(x + table(image, coords, images).astype(x.dtype))
        integers = integers_of(image)
        prepared = self.attention.prepare(integers, integers)
        x = run_layers(Siglip2Block, c, self.attention, self.sharding, x, prepared)
        return x, LayerNorm(c.norm_eps, name='norm')(x)

    @staticmethod
    def check(config: ConfigDict, field: str) -> None:
        """Raises UserError for a width that the heads do not divide."""
        require(
            config.heads > 0 and config.width % config.heads == 0,
            f'{field}.width={config.width} is not a multiple of {field}.heads={config.heads}',
        )

    @staticmethod
    def own_tokens(config: ConfigDict) -> int:
        """Tokens of each image beside its patches: none."""
        del config
        return 0

    @staticmethod
    def token_flops(config: ConfigDict) -> float:
        """Forward FLOPs of a token in the products of all layers, without attention's."""
        return 4.0 * config.layers * config.width * (2 * config.width + config.feedforward)

    @staticmethod
    def embed_flops(config: ConfigDict, channels: int) -> float:
        """Forward FLOPs of a patch of C values before the layers, with its position."""
        return 2.0 * (channels + config.position_grid**2) * config.width
