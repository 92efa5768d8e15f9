"""The space in which the flow draws: pixels themselves, or latents of a small frozen VAE.

The VAE is a KL-VAE (arXiv 1312.6114) of two vision transformers, a latent a patch, so that pixel
and latent models have equally many tokens, and pictures of any size pack alike. A run of its own
learns it (losses.reconstruction and losses.kl); the runs that draw with it hold it frozen.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.attention.protocol import Attention
from rf_jax.models.layers import Dense
from rf_jax.models.token_sharding import Cut
from rf_jax.models.vision_encoder import VisionEncoder
from rf_jax.runtime.errors import choose

_LEAST = -12.0  # of the logarithm of a variance


class Pixels(nn.Module):
    """No bottleneck: a patch [.., C] is its own latent."""

    config: ConfigDict  # model
    channels: int  # C of a patch
    attention: Attention
    cut: Cut
    dtype: jnp.dtype  # of activations

    def encode(self, patches: jax.Array, where) -> jax.Array:
        """patches [B, P, C] in [-1, 1] -> what the flow draws, [B, P, Z]."""
        del where
        return patches

    def decode(self, latents: jax.Array, where) -> jax.Array:
        """The inverse, float32 [B, P, C]."""
        del where
        return latents

    def outputs(self, patches: jax.Array, where, noise: jax.Array | None) -> dict[str, jax.Array]:
        return {}


class Vae(nn.Module):
    """Encoder and decoder see the patches of one picture; `where` is (picture, coords, pictures)
    as `VisionEncoder` takes them.
    """

    config: ConfigDict  # model
    channels: int
    attention: Attention
    cut: Cut
    dtype: jnp.dtype

    def setup(self):
        c = self.config.autoencoder
        self.encoder = VisionEncoder(c, self.attention, self.cut)
        self.posterior = Dense(2 * c.channels, True)
        self.decoder = VisionEncoder(c, self.attention, self.cut)
        self.patch = Dense(self.channels, True)

    def _posterior(self, patches, where) -> tuple[jax.Array, jax.Array]:
        """Mean and logarithm of the variance, float32 [B, P, Z]."""
        hidden = self.encoder(patches.astype(self.dtype), *where)[1].astype(jnp.float32)
        mean, log_variance = jnp.split(self.posterior(hidden), 2, -1)
        return mean, jnp.clip(log_variance, _LEAST, 4.0)

    def encode(self, patches: jax.Array, where) -> jax.Array:
        """The mean of the posterior, float32 [B, P, Z]."""
        return self._posterior(patches, where)[0]

    def decode(self, latents: jax.Array, where) -> jax.Array:
        """Patches float32 [B, P, C], about in [-1, 1]."""
        hidden = self.decoder(latents.astype(self.dtype), *where)[1]
        return self.patch(hidden.astype(jnp.float32))

    def outputs(self, patches: jax.Array, where, noise: jax.Array | None) -> dict[str, jax.Array]:
        """Of a latent drawn with unit noise [B, P, Z]: the squared error and KL a token [B, P].

        Nothing without noise. A train step always gives it; what no loss reads XLA leaves out.
        """
        if noise is None:
            return {}
        mean, log_variance = self._posterior(patches, where)
        drawn = mean + jnp.exp(0.5 * log_variance) * noise
        error = self.decode(drawn, where) - patches
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
        return {'reconstruction': jnp.mean(error**2, -1), 'kl': jnp.mean(kl, -1)}


# Class, and the values Z of a latent.
SPACES = {
    'pixels': (Pixels, lambda c: c.data.patch_size**2 * 3),
    'vae': (Vae, lambda c: c.model.autoencoder.channels),
}


def build(
    config: ConfigDict, attention: Attention, cut: Cut
) -> tuple[Callable[[], nn.Module], int]:
    """(maker of the module of `config.model.space`, its Z). Raises UserError."""
    space, width = choose('model.space', config.model.space, SPACES)
    dtype = jnp.dtype(config.compute_dtype)
    channels = config.data.patch_size**2 * 3
    return partial(space, config.model, channels, attention, cut, dtype), width(config)
