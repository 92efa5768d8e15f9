"""The protocol of a generation space. A subclass overrides what it does differently; the defaults
are those of a space that has no parameters.

Shape letters: see `rf_jax/__init__.py`; Z values of a latent, which stands for one patch.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from rf_jax.models.attention import Attention
from rf_jax.models.microbatches import Part
from rf_jax.models.token_sharding import TokenSharding

Batch = Mapping[str, jax.Array]
# (image int32 [B, P], coords [B, P, 2], images of a row), as `VisionEncoder` takes them.
Where = tuple[jax.Array, jax.Array, int]


class Codec(Protocol):
    """The module of a space, `autoencoder` among the parameters."""

    def encode(self, patches: jax.Array, where: Where) -> jax.Array:
        """Clean patches [B, P, C] in [-1, 1] -> what the flow generates, float32 [B, P, Z]."""

    def decode(self, latents: jax.Array, where: Where) -> jax.Array:
        """[B, P, Z] -> patches float32 [B, P, C], about in [-1, 1]."""

    def outputs(self, patches: jax.Array, where: Where, batch: Batch) -> dict[str, jax.Array]:
        """Values per token [B, P] for the terms of the objective that train the codec itself."""


class Space(Protocol):
    """Methods that take `config` get the whole config."""

    # Vision transformers of the codec, by their name in config.model: the first encodes.
    towers: tuple[str, ...] = ()

    def width(self, config: ConfigDict) -> int:
        """Z."""

    def codec(
        self,
        model: ConfigDict,
        channels: int,
        attention: Attention,
        sharding: TokenSharding,
        dtype: Any,
    ) -> nn.Module:
        """The `Codec`. `model`: config.model, `channels`: C, `dtype`: of
        activations.
        """

    def patch_flops(self, config: ConfigDict) -> float:
        """Forward FLOPs of encoding a patch, without those of `towers`."""
        del config
        return 0.0

    def noise(self, key: jax.Array, part: Part, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        """Batch entries with the noise that `outputs` reads in training, of the rows of `part`.

        shape: [B, P, Z] of these rows; `key`: of the whole batch.
        """
        del key, part, shape
        return {}

    def check(self, config: ConfigDict) -> None:
        """Raises UserError for losses and freezing that cannot work in this space."""
        del config

    def needs_weights(self, config: ConfigDict) -> dict[str, str]:
        """{field=value: effect} of what makes sense only with the weights of an earlier run."""
        del config
        return {}
