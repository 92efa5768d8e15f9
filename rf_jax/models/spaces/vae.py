"""The flow generates latents of a small KL-VAE (arXiv 1312.6114) of two vision transformers.

A latent stands for a patch, so that pixel and latent models have equally many tokens, and images
of any size pack alike. A run of its own trains the VAE (losses.reconstruction and losses.kl); the
runs that generate with it keep it frozen.
"""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from rf_jax.models.attention import Attention
from rf_jax.models.layers import Dense
from rf_jax.models.microbatches import Part
from rf_jax.models.spaces.space import Batch, Space, Where
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.models.vision_encoder import VisionEncoder
from rf_jax.runtime.errors import require

_LEAST = -12.0  # of the logarithm of a variance
_NOISE = 'posterior_noise'


class Autoencoder(nn.Module):
    """A `Codec`. Encoder and decoder attend to the patches of one image."""

    model: ConfigDict
    channels: int  # C
    attention: Attention
    sharding: TokenSharding
    dtype: Any  # of activations

    def setup(self):
        c = self.model.autoencoder
        self.encoder = VisionEncoder(c, self.attention, self.sharding)
        self.posterior = Dense(2 * c.channels, True)
        self.decoder = VisionEncoder(c, self.attention, self.sharding)
        self.patch = Dense(self.channels, True)

    def _posterior(self, patches, where) -> tuple[jax.Array, jax.Array]:
        """Mean and logarithm of the variance, float32 [B, P, Z]."""
        hidden = self.encoder(patches.astype(self.dtype), *where)[1].astype(jnp.float32)
        mean, log_variance = jnp.split(self.posterior(hidden), 2, -1)
        return mean, jnp.clip(log_variance, _LEAST, 4.0)

    def encode(self, patches: jax.Array, where: Where) -> jax.Array:
        """The mean of the posterior, float32 [B, P, Z]."""
        return self._posterior(patches, where)[0]

    def decode(self, latents: jax.Array, where: Where) -> jax.Array:
        """Patches float32 [B, P, C], about in [-1, 1]."""
        hidden = self.decoder(latents.astype(self.dtype), *where)[1]
        return self.patch(hidden.astype(jnp.float32))

    def outputs(self, patches: jax.Array, where: Where, batch: Batch) -> dict[str, jax.Array]:
        """Of a latent sampled with the noise of the batch: squared error and KL per token [B, P].

        {} for a batch without noise. A train step always has it; what no loss reads XLA leaves out.
        """
        if _NOISE not in batch:
            return {}
        mean, log_variance = self._posterior(patches, where)
        sampled = mean + jnp.exp(0.5 * log_variance) * batch[_NOISE]
        error = self.decode(sampled, where) - patches
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance)
        return {'reconstruction': jnp.mean(error**2, -1), 'kl': jnp.mean(kl, -1)}


class Vae(Space):
    """Adds `posterior_noise`, unit normal float32 [B, P, Z], to the batch."""

    towers = ('autoencoder',)

    def width(self, config: ConfigDict) -> int:
        """As the config says."""
        return config.model.autoencoder.channels

    def codec(
        self,
        model: ConfigDict,
        channels: int,
        attention: Attention,
        sharding: TokenSharding,
        dtype: Any,
    ) -> nn.Module:
        """The two towers."""
        return Autoencoder(model, channels, attention, sharding, dtype)

    def noise(self, key: jax.Array, part: Part, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Of the posterior."""
        return {_NOISE: part.normal(key, shape)}

    def check(self, config: ConfigDict) -> None:
        """Latents must not move while the flow learns to generate them."""
        learned = config.losses.reconstruction > 0
        frozen = any(re.search(each, 'autoencoder/') for each in config.optimizer.freeze)
        require(
            learned or frozen,
            "model.space='vae' generates latents, which must not move: set optimizer.freeze="
            "('^autoencoder/',), and initialise_from a run that trained the autoencoder "
            '(losses.reconstruction)',
        )
        require(
            not learned or not config.losses.flow,
            'losses.reconstruction and losses.flow are both above 0: the flow would generate '
            'latents that move; train the autoencoder in one run, and start another from it '
            '(initialise_from)',
        )

    def needs_weights(self, config: ConfigDict) -> dict[str, str]:
        """An autoencoder that is not trained here."""
        if config.losses.reconstruction:
            return {}
        given = "model.space='vae' without losses.reconstruction"
        return {given: 'generates latents of an autoencoder that was never trained'}


SPACE = Vae()
