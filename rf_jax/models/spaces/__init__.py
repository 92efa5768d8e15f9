"""The space in which the flow generates, one file each: `pixels`, the latents of a `vae` trained
here, or those of the pretrained VAE of `wan`.

`space.py` is the protocol; `of` finds the space of a config.
"""

from ml_collections import ConfigDict

from rf_jax.models.spaces import pixels, vae, wan
from rf_jax.models.spaces.space import Space
from rf_jax.runtime.errors import choose

SPACES: dict[str, Space] = {'pixels': pixels.SPACE, 'vae': vae.SPACE, 'wan': wan.SPACE}


def of(config: ConfigDict) -> Space:
    """The space of `config.model.space`. Raises UserError."""
    return choose('model.space', config.model.space, SPACES)
