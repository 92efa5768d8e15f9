"""Stage 1 of the paper: only the connector is trained, to align the encoder with the backbone.

The stages follow one another: give each its own `--workdir`, and start each from the previous one,
as with `--config.initialise_from=runs/alignment`. Paper: 10K steps from a pretrained backbone and
encoder; from scratch, this stage has little to align.
"""

from configs import base


def get_config():
    config = base.get_config()
    config.steps = 300  # paper: 10,000
    config.data.tasks.text_to_image = 0.0
    capacity = config.data.capacity  # no images to generate
    capacity.representation = capacity.pixels = capacity.pixel_images = 0
    config.losses.representation = 0.0
    config.losses.flow = 0.0
    config.optimizer.learning_rate = 5e-5
    config.optimizer.freeze = (r'^(?!connector/)',)  # everything but the connector
    return config
