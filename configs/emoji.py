"""The default: 1,851 emoji of 64 x 64 pixels with their names, trained on two CPU cores.

python -m rf_jax.train --config=configs/emoji.py --workdir=runs/emoji         (the README's command)
python -m rf_jax.train --config=configs/emoji.py:long --workdir=runs/long     (4 times the steps)

The README has the results. Differences from `base.py`, each measured on this data set: fewer and
wider layers learn more per second on a CPU; the model has to recall an image at high noise (low
t), so `flow` shifts times towards it in training and in sampling; rows of 45 tokens hold one
image to generate and one to caption, and are 84 % full.
"""

from configs import base
from rf_jax.runtime.errors import choose

VARIANTS = {'': 6000, 'long': 24_000}  # steps


def get_config(variant: str = ''):
    config = base.get_config()
    config.steps = choose('configs/emoji.py:variant', variant, VARIANTS)
    data = config.data
    data.capacity.text = data.max_text_tokens = 20
    data.capacity.vision = 4
    data.capacity.vision_images = 1
    data.question_prob = 0.15
    data.label_prob = 0.7
    backbone = config.model.backbone
    backbone.layers, backbone.width, backbone.feedforward = 3, 192, 512
    backbone.heads = 3
    backbone.unroll = config.model.encoder.unroll = 3  # 7 % faster than a loop over 3 layers
    config.model.encoder.registers = 1
    representation = config.model.representation
    # A batch has 128 features: with more prototypes than that, many fall behind the changing
    # encoder and go unused (of 512, 38 to 46 % were still in use).
    representation.codebook_size = 128
    # The encoder starts from random weights: clustering its features makes sense only after a
    # while.
    representation.quantizer.data_init_steps = (0, 100, 500)
    config.optimizer.learning_rate = 3e-3
    config.ema.decay = config.ema.encoder_decay = 0.998
    config.flow.time_mean = -0.4
    config.flow.time_std = 1.0
    config.flow.shift = 4.0
    config.checkpoint.every = 500
    config.log.samples_every = 1000
    return config
