"""Stage 3 of the paper: `joint` at half the learning rate, with larger images if there are any.

The timestep shift grows with the size of the image (`flow.base_pixels`).
"""

from configs import joint


def get_config():
    config = joint.get_config()
    config.steps = 400  # paper: 20,000
    config.data.sizes = ((128, 0.3), (64, 0.7))  # paper: up to 1,024 px
    config.data.batch_size = 16
    config.data.capacity.text = 64
    config.data.capacity.vision = 20
    config.data.capacity.vision_images = 4
    config.data.capacity.representation = 20
    config.data.capacity.pixels = 64
    config.data.capacity.pixel_images = 4
    config.optimizer.learning_rate /= 2
    # Keep the codebook and the EMA of `initialise_from`.
    config.model.representation.quantizer.data_init_steps = ()
    config.ema.warmup = False
    return config
