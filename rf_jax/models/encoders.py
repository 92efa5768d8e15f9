"""Families of vision encoders, by `model.encoder.kind`.

All are called as `VisionEncoder`, and know what an image and a token cost them: `own_tokens`,
`token_flops` and `embed_flops`; `check` raises UserError for a config that they cannot run.
"""

from ml_collections import ConfigDict

from rf_jax.models.siglip2_encoder import Siglip2Encoder
from rf_jax.models.vision_encoder import VisionEncoder
from rf_jax.runtime.errors import choose

ENCODERS = {'dinov3': VisionEncoder, 'siglip2': Siglip2Encoder}


def of(tower: ConfigDict) -> type[VisionEncoder] | type[Siglip2Encoder]:
    """The class of `config.model.encoder`, or of an autoencoder. Raises UserError."""
    # Autoencoders and older runs have no kind.
    return choose('model.encoder.kind', tower.get('kind', 'dinov3'), ENCODERS)


def own_tokens(config: ConfigDict) -> int:
    """Tokens of each image in the encoder of a whole config, beside its patches."""
    return of(config.model.encoder).own_tokens(config.model.encoder)
