"""Stage 2 of the paper: everything is trained, on small images, new parameters at 4x the rate."""

from configs import base

# Parameters that a pretrained language model and encoder do not have.
GENERATION = r'^(representation_|patch_|backbone/layers/(representation|pixels)(_\w+)?/)'


def get_config():
    config = base.get_config()
    config.steps = 1000  # paper: 50,000
    config.data.tasks.text_only = 0.2
    config.data.sizes = ((64, 0.7), (32, 0.3))  # paper: up to 256 px
    config.optimizer.learning_rate = 3e-4  # paper: 5e-5 from pretrained weights
    config.optimizer.lr_multipliers = ((GENERATION, 4.0),)
    return config
