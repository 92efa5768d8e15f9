"""The generation space that a config names."""

from ml_collections import ConfigDict

from rf_jax.models.spaces import pixels, vae
from rf_jax.models.spaces.space import Space
from rf_jax.runtime.errors import choose

SPACES: dict[str, Space] = {'pixels': pixels.SPACE, 'vae': vae.SPACE}


def of(config: ConfigDict) -> Space:
    """The space of `config.model.space`. Raises UserError."""
    return choose('model.space', config.model.space, SPACES)
