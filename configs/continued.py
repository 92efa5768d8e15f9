"""Stage 3 of the paper: as `joint` at half the rate, larger pictures if the data has them.

The timestep shift grows with the picture (`flow.base_pixels`).
"""

from configs import joint


def get_config():
    config = joint.get_config()
    config.steps = 400  # paper: 20,000
    config.data.sizes = ((128, 0.3), (64, 0.7))  # paper: up to 1,024 px
    config.data.batch_size = 16
    config.data.capacity.text = 64
    config.data.capacity.vision = 20
    config.data.capacity.vision_pictures = 4
    config.data.capacity.representation = 20
    config.data.capacity.pixels = 64
    config.data.capacity.pixel_pictures = 4
    config.optimizer.learning_rate /= 2
    # What comes from `initialise_from` is worth keeping: its codebook and its average.
    config.model.representation.quantizer.data_init_steps = ()
    config.ema.warmup = False
    return config
