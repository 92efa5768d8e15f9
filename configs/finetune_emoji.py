"""Teaches a trained emoji model pictures of your own, with low-rank adapters: a few minutes.

python -m rf_jax.train --config=configs/finetune_emoji.py --workdir=runs/mine \
    --config.initialise_from=runs/emoji --config.data.sources=folder:/path/to/pictures

`:full` trains the whole backbone instead. With both, the encoder and the codebook stay, so that the
representation tokens keep their meaning. docs/usage.md compares them.
"""

from configs import emoji
from rf_jax.runtime.errors import choose

# Variant: (fields of config.lora, learning rate, frozen parameters).
VARIANTS = {
    'lora': ({'rank': 8, 'alpha': 16.0}, 1e-3, ()),
    'full': ({}, 3e-4, (r'^encoder/',)),
}


def get_config(variant: str = 'lora'):
    config = emoji.get_config()
    adapters, rate, frozen = choose('configs/finetune_emoji.py:variant', variant, VARIANTS)
    config.lora.update(adapters)
    config.optimizer.learning_rate = rate
    config.optimizer.freeze = frozen
    config.optimizer.warmup_steps = 20
    config.initialise_from_average = True
    config.steps = 300
    config.model.representation.quantizer.data_init_steps = ()
    config.model.representation.quantizer.momentum = 1.0
    config.checkpoint.every = 100
    config.log.samples_every = 0
    return config
