"""The space in which the flow generates: pixels, or latents of a small frozen VAE.

The VAE is a KL-VAE (arXiv 1312.6114) of two vision transformers with one latent per patch, so pixel
and latent models have the same number of tokens, and pictures of any size can be packed. It is
trained by a separate run (losses.reconstruction and losses.kl); runs that generate with it freeze
it.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.layers import Dense
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.models.vision_encoder import VisionEncoder
from rf_jax.runtime.errors import choose

_MIN_LOG_VARIANCE = -12.0


class Pixels(nn.Module):
    """No bottleneck: each patch [..., C] is its own latent."""

    config: ConfigDict  # model
    channels: int  # C of a patch
    form: object  # of attention
    sharding: TokenSharding
    dtype: object  # of activations

    def encode(self, patches: jax.Array, where) -> jax.Array:
        """patches [B, P, C] in [-1, 1] -> what the flow generates, [B, P, Z]."""
        del where
        return patches

    def decode(self, latents: jax.Array, where) -> jax.Array:
        """The inverse, float32 [B, P, C]."""
        del where
        return latents

    def outputs(self, patches: jax.Array, where, noise: jax.Array | None) -> dict[str, jax.Array]:
        return {}


class Vae(nn.Module):
    """Encoder and decoder attend within each picture; `where` is (picture, coords, pictures) as for
    `VisionEncoder`.
    """

    config: ConfigDict  # model
    channels: int
    form: object
    sharding: TokenSharding
    dtype: object

    def setup(self):
        c = self.config.autoencoder
        self.encoder = VisionEncoder(c, self.form, self.sharding)
        self.posterior = Dense(2 * c.channels, True)
        self.decoder = VisionEncoder(c, self.form, self.sharding)
        self.patch = Dense(self.channels, True)

    def _posterior(self, patches, where) -> tuple[jax.Array, jax.Array]:
        """Mean and logarithm of the variance, float32 [B, P, Z]."""
        hidden = self.encoder(patches.astype(self.dtype), *where)[1].astype(jnp.float32)
        mean, log_variance = jnp.split(self.posterior(hidden), 2, -1)
        return mean, jnp.clip(log_variance, _MIN_LOG_VARIANCE, 4.0)

    def encode(self, patches: jax.Array, where) -> jax.Array:
        """The mean of the posterior, float32 [B, P, Z]."""
        return self._posterior(patches, where)[0]

    def decode(self, latents: jax.Array, where) -> jax.Array:
        """Patches float32 [B, P, C], roughly in [-1, 1]."""
        hidden = self.decoder(latents.astype(self.dtype), *where)[1]
        return self.patch(hidden.astype(jnp.float32))

    def outputs(self, patches: jax.Array, where, noise: jax.Array | None) -> dict[str, jax.Array]:
        """Squared error and KL per token [B, P] of a latent sampled with unit noise [B, P, Z].

        Empty without noise. A train step always passes it; XLA removes what no loss uses.
        """
        if noise is None:
            return {}
        mean, log_variance = self._posterior(patches, where)
        latents = mean + jnp.exp(0.5 * log_variance) * noise
        error = self.decode(latents, where) - patches
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
        return {'reconstruction': jnp.mean(error**2, -1), 'kl': jnp.mean(kl, -1)}


# Class, and size Z of a latent.
SPACES = {
    'pixels': (Pixels, lambda c: c.data.patch_size**2 * 3),
    'vae': (Vae, lambda c: c.model.autoencoder.channels),
}


def build(config, form, sharding: TokenSharding) -> tuple[Callable[[], nn.Module], int]:
    """(constructor of the module of `config.model.space`, its Z). Raises UserError."""
    space, width = choose('model.space', config.model.space, SPACES)
    dtype = jnp.dtype(config.compute_dtype)
    channels = config.data.patch_size**2 * 3
    return partial(space, config.model, channels, form, sharding, dtype), width(config)
