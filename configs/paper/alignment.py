"""Stage 1 of the paper at its size: connector only, 10K steps. See `configs/alignment.py`.

Sizes: configs/paper/alignment.py (30B-A3B), ...:1.7B, ...:0.6B, ...:0.3B.
"""

from configs.paper import scale


def get_config(size: str = '30B-A3B'):
    config = scale.get_config(size)
    config.steps = 10_000
    config.data.max_text_tokens = 512
    config.data.sizes = ((256, 1.0),)
    config.data.tasks.update(text_to_image=0.0, image_to_text=1.0, text_only=0.0)
    # As `rf_jax.packing_report` recommends: 355 images of 256 px.
    scale.row(config, text=10_048, vision=22_720, representation=0, pixels=0,
              vision_images=628, pixel_images=0)  # fmt: skip
    if size == '30B-A3B':  # the frozen encoder saves no activations, which leaves memory
        config.model.backbone.remat = 'feedforward'
    config.losses.update(representation=0.0, flow=0.0)
    config.optimizer.freeze = (r'^(?!connector/)',)
    return config
