"""The flow generates latents of the pretrained VAE of Wan 2.1 (arXiv 2503.20314), of single frames.

A place of the latents stands for 8 x 8 pixels. The places of a patch are one token: a patch of 16
pixels has Z = 4 x 16 values, and there are as many tokens as with pixels. The weights come from
`initialise_from` and stay as they are.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from rf_jax.models import packed_images
from rf_jax.models.attention import Attention
from rf_jax.models.layers import Dense
from rf_jax.models.spaces.space import Batch, Space, Where
from rf_jax.models.spaces.wan_layers import Conv, Middle, Norm, Residual
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.models.vision_encoder import integers_of
from rf_jax.runtime.errors import require

# Of the 16 channels of the latents, as its authors measured them (config.json of the VAE).
MEAN = np.float32([
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
])  # fmt: skip
STD = np.float32([
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
])  # fmt: skip
CHANNELS = len(MEAN)


def stride(wan: ConfigDict) -> int:
    """Pixels along a side of a place of the latents; `wan`: config.model.wan."""
    return 2 ** (len(wan.dim_mult) - 1)


class Encoder(nn.Module):
    """Tiles [B, P, s, s, 3] of pixels to [B, P, s / stride, s / stride, 2 x CHANNELS]."""

    config: ConfigDict  # model.wan
    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array, neighbours: jax.Array, prepared) -> jax.Array:
        c = self.config
        x = Conv(c.base_dim, name='conv_in')(x, neighbours)
        for level, factor in enumerate(c.dim_mult):
            for i in range(c.num_res_blocks):
                x = Residual(factor * c.base_dim, name=f'down_{level}_{i}')(x, neighbours)
            if level < len(c.dim_mult) - 1:
                x = Conv(factor * c.base_dim, stride=2, name=f'conv_down_{level}')(x, neighbours)
        x = Middle(self.attention, name='middle')(x, neighbours, prepared)
        x = nn.silu(Norm(name='norm_out')(x))
        return Conv(2 * CHANNELS, name='conv_out')(x, neighbours)


class Decoder(nn.Module):
    """The way back: [B, P, s / stride, s / stride, CHANNELS] to [B, P, s, s, 3]."""

    config: ConfigDict  # model.wan
    attention: Attention

    @nn.compact
    def __call__(self, x: jax.Array, neighbours: jax.Array, prepared) -> jax.Array:
        c = self.config
        x = Conv(c.dim_mult[-1] * c.base_dim, name='conv_in')(x, neighbours)
        x = Middle(self.attention, name='middle')(x, neighbours, prepared)
        for level, factor in enumerate(reversed(c.dim_mult)):
            width = factor * c.base_dim
            for i in range(c.num_res_blocks + 1):
                x = Residual(width, name=f'up_{level}_{i}')(x, neighbours)
            if level < len(c.dim_mult) - 1:
                x = jnp.repeat(jnp.repeat(x, 2, 2), 2, 3)
                x = Conv(width // 2, name=f'conv_up_{level}')(x, neighbours)
        return Conv(3, name='conv_out')(nn.silu(Norm(name='norm_out')(x)), neighbours)


class Autoencoder(nn.Module):
    """A `Codec` that is never trained."""

    config: ConfigDict  # model.wan
    attention: Attention
    sharding: TokenSharding
    dtype: Any  # of activations

    def setup(self):
        self.encoder = Encoder(self.config, self.attention)
        self.quant_conv = Dense(2 * CHANNELS, True)
        self.post_quant_conv = Dense(CHANNELS, True)
        self.decoder = Decoder(self.config, self.attention)

    def _context(self, where: Where, places: int):
        """(neighbours of each patch, `prepared` of attention among the places of an image)."""
        owner = jnp.repeat(where[0], places, 1)
        integers = integers_of(owner)
        return packed_images.neighbours(*where), self.attention.prepare(integers, integers)

    def _tiles(self, x: jax.Array, channels: int) -> jax.Array:
        """[B, P, s s C] -> [B, P, s, s, C] of activations."""
        side = round((x.shape[-1] // channels) ** 0.5)
        return self.sharding.constrain(
            x.reshape(*x.shape[:2], side, side, channels).astype(self.dtype)
        )

    def encode(self, patches: jax.Array, where: Where) -> jax.Array:
        """The mean of the posterior, standardised by MEAN and STD; float32 [B, P, Z]."""
        x = self._tiles(patches, 3)
        x = self.encoder(x, *self._context(where, (x.shape[2] // stride(self.config)) ** 2))
        mean = self.quant_conv(x)[..., :CHANNELS].astype(jnp.float32)
        return ((mean - MEAN) / STD).reshape(*patches.shape[:2], -1)

    def decode(self, latents: jax.Array, where: Where) -> jax.Array:
        """Patches float32 [B, P, C], clipped to [-1, 1]."""
        latents = latents.astype(jnp.float32).reshape(*latents.shape[:2], -1, CHANNELS)
        places = latents.shape[2]
        x = self._tiles((latents * STD + MEAN).reshape(*latents.shape[:2], -1), CHANNELS)
        x = self.decoder(self.post_quant_conv(x), *self._context(where, places))
        return jnp.clip(x.astype(jnp.float32), -1.0, 1.0).reshape(*latents.shape[:2], -1)

    def outputs(self, patches: jax.Array, where: Where, batch: Batch) -> dict[str, jax.Array]:
        """{}: no loss trains it."""
        del batch
        if self.is_initializing():
            self.decode(self.encode(patches, where), where)
        return {}


class Wan(Space):
    """Latents with mean 0 and deviation 1 in each of 16 channels."""

    def width(self, config: ConfigDict) -> int:
        """16 values for each place of a patch."""
        return (config.data.patch_size // stride(config.model.wan)) ** 2 * CHANNELS

    def codec(
        self,
        model: ConfigDict,
        channels: int,
        attention: Attention,
        sharding: TokenSharding,
        dtype: Any,
    ) -> nn.Module:
        """The VAE."""
        del channels
        return Autoencoder(model.wan, attention, sharding, dtype)

    def patch_flops(self, config: ConfigDict) -> float:
        """Of encoding, without the product of its attention."""
        c, side = config.model.wan, config.data.patch_size
        width, products = c.base_dim, 9 * side**2 * 3 * c.base_dim
        for level, factor in enumerate(c.dim_mult):
            for _ in range(c.num_res_blocks):
                before, width = width, factor * c.base_dim
                shortcut = before * width if before != width else 0
                products += side**2 * (9 * width * (before + width) + shortcut)
            if level < len(c.dim_mult) - 1:
                side //= 2
                products += 9 * side**2 * width**2
        middle = (2 * 18 + 4) * width**2
        end = 9 * width * 2 * CHANNELS + (2 * CHANNELS) ** 2
        return 2.0 * (products + side**2 * (middle + end))

    def check(self, config: ConfigDict) -> None:
        """The weights are not trained here, and a patch is whole places of the latents."""
        c, patch = config.model.wan, config.data.patch_size
        require(len(c.dim_mult) > 0, 'model.wan.dim_mult=(): expected at least one number')
        require(
            patch % stride(c) == 0,
            f"data.patch_size={patch} is not a multiple of {stride(c)}, as model.space='wan' needs",
        )
        weight = config.losses.reconstruction
        require(not weight, f"losses.reconstruction={weight} needs model.space='vae'")
        require(
            any(re.search(each, 'autoencoder/') for each in config.optimizer.freeze),
            "model.space='wan' generates latents, which must not move: set optimizer.freeze="
            "('^autoencoder/',)",
        )

    def needs_weights(self, config: ConfigDict) -> dict[str, str]:
        """It is not trained here."""
        del config
        return {"model.space='wan'": 'generates latents of an autoencoder that was never trained'}


SPACE = Wan()
