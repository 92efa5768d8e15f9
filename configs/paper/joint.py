"""Stage 2 of the paper at its size: everything is trained, images up to 256 px, 50K steps.

Sizes: configs/paper/joint.py (30B-A3B), ...:1.7B, ...:0.6B, ...:0.3B.
"""

from configs.joint import GENERATION
from configs.paper import scale
from configs.scenes import GROUPS, NEW


def get_config(size: str = '30B-A3B'):
    config = scale.get_config(size)
    config.steps = 50_000
    config.data.max_text_tokens = 512
    config.data.sizes = ((256, 1.0),)
    # Paper: text, image-to-text and text-to-image, weights not given.
    config.data.tasks.update(text_to_image=0.6, image_to_text=0.3, text_only=0.1)
    # As `rf_jax.packing_report` recommends: 83 images of 256 px to generate, 42 to caption.
    scale.row(config, text=3328, vision=2688, representation=5440, pixels=21_312,
              vision_images=76, pixel_images=148)  # fmt: skip
    config.optimizer.lr_multipliers = ((GENERATION, 4.0),)
    # All three groups start from the language model. The EMA of new parameters covers only their
    # own steps; the rest continues the EMA of the previous stage.
    config.initialise_new, config.initialise_as = NEW, GROUPS
    config.ema.warmup = False
    return config
