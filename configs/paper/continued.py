"""Stage 3 of the paper at its size: images up to 1,024 px, half the learning rate, 20K steps.

Sizes: configs/paper/continued.py (30B-A3B), ...:1.7B, ...:0.6B, ...:0.3B (rows a quarter as
long, up to 512 px).
"""

from configs.paper import joint, scale


def get_config(size: str = '30B-A3B'):
    config = joint.get_config(size)
    config.steps = 20_000
    large = size == '30B-A3B'
    config.data.sizes = ((1024 if large else 512, 0.6), (512 if large else 256, 0.4))
    config.data.max_text_tokens = 128
    # As `rf_jax.packing_report` recommends: 5 images of 1,024 px to generate, 2 to caption.
    scale.row(config, text=640, vision=2912, representation=5856, pixels=23_360,
              vision_images=16, pixel_images=32)  # fmt: skip
    config.optimizer.learning_rate /= 2
    config.model.representation.quantizer.data_init_steps = ()
    # Nothing is new: everything continues from `joint`.
    config.initialise_new = config.initialise_as = ()
    return config
