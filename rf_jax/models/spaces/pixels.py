"""The flow generates pixels (the paper; JiT): a patch is its own latent."""

from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from rf_jax.models.attention import Attention
from rf_jax.models.spaces.space import Batch, Space, Where
from rf_jax.models.token_sharding import TokenSharding
from rf_jax.runtime.errors import require


class Identity(nn.Module):
    """A `Codec` without parameters."""

    def encode(self, patches: jax.Array, where: Where) -> jax.Array:
        """As they are."""
        del where
        return patches

    def decode(self, latents: jax.Array, where: Where) -> jax.Array:
        """As they are."""
        del where
        return latents

    def outputs(self, patches: jax.Array, where: Where, batch: Batch) -> dict[str, jax.Array]:
        """{}"""
        del patches, where, batch
        return {}


class Pixels(Space):
    """Z = C."""

    def width(self, config: ConfigDict) -> int:
        """C."""
        return config.data.patch_size**2 * 3

    def codec(
        self,
        model: ConfigDict,
        channels: int,
        attention: Attention,
        sharding: TokenSharding,
        dtype: Any,
    ) -> nn.Module:
        """The identity."""
        del model, channels, attention, sharding, dtype
        return Identity()

    def check(self, config: ConfigDict) -> None:
        """There is nothing to reconstruct."""
        weight = config.losses.reconstruction
        require(not weight, f"losses.reconstruction={weight} needs model.space='vae'")


SPACE = Pixels()
