"""The paper's three stages on a laptop, on emoji and in a few hundred steps each.

python -m rf_jax.train --config=configs/stages.py:alignment --workdir=runs/alignment
python -m rf_jax.train --config=configs/stages.py:joint --workdir=runs/joint \\
    --config.initialise_from=runs/alignment
python -m rf_jax.train --config=configs/stages.py:continued --workdir=runs/continued \\
    --config.initialise_from=runs/joint

Each starts from the previous one, in a workdir of its own. configs/paper.py has them at the paper's
size.
"""

from configs import base
from rf_jax.runtime.errors import choose

# Parameters that a pretrained language model and encoder do not have.
GENERATION = r'^(representation_|patch_|backbone/layers/(representation|pixels)(_\w+)?/)'


def alignment(config):
    """Stage 1: only the connector is trained, to align the encoder with the backbone.

    Paper: from a pretrained backbone and encoder; from scratch, there is little to align.
    """
    config.steps = 300  # paper: 10,000
    config.data.tasks.text_to_image = 0.0
    capacity = config.data.capacity  # no images to generate
    capacity.representation = capacity.pixels = capacity.pixel_images = 0
    config.losses.representation = 0.0
    config.losses.flow = 0.0
    config.optimizer.learning_rate = 5e-5
    config.optimizer.freeze = (r'^(?!connector/)',)  # everything but the connector


def joint(config):
    """Stage 2: everything is trained, on small images, new parameters at 4x the rate."""
    config.steps = 1000  # paper: 50,000
    config.data.tasks.text_only = 0.2
    config.data.sizes = ((64, 0.7), (32, 0.3))  # paper: up to 256 px
    config.optimizer.learning_rate = 3e-4  # paper: 5e-5 from pretrained weights
    config.optimizer.lr_multipliers = ((GENERATION, 4.0),)


def continued(config):
    """Stage 3: `joint` at half the learning rate, with larger images if there are any.

    The timestep shift grows with the size of the image (`flow.base_pixels`).
    """
    joint(config)
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


STAGES = {'alignment': alignment, 'joint': joint, 'continued': continued}


def get_config(stage: str = 'joint'):
    change = choose('configs/stages.py:stage', stage, STAGES)
    config = base.get_config()
    change(config)
    return config
