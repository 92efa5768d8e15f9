"""Qwen3-0.6B and a DINOv3 encoder learn to generate images, on one GPU of 80 GB.

python -m rf_jax.train --config=configs/finetune.py --workdir=runs/qwen \\
    --config.initialise_from=hf:/models/Qwen3-0.6B,hf:/models/dinov3-vitb16 \\
    --config.data.sources=folder:/path/to/images

It is the paper's second stage (configs/paper.py:joint/0.6B) with a new connector, since there is no
first stage, and one row of 8,192 tokens at a time. `full` trains everything. `lora` trains the
connector and what generates images in full, and the language model by adapters; the encoder and the
text vocabulary stay. After a slash, the size of the encoder: configs/finetune.py:lora/S.
docs/weights.md has the memory of each.
"""

from configs import paper
from configs.stages import GENERATION
from rf_jax.runtime.errors import choose

CONNECTOR = r'^connector/'  # no pretrained model has it
ADAPTERS = {
    'rank': 32,
    'alpha': 64.0,
    'targets': (r'^backbone/layers/(attention|output|understanding)/',),
    'full': (GENERATION, CONNECTOR),
}
# Variant: (fields of config.lora, parameters that learn at four times the rate, as in the paper).
VARIANTS = {
    'full': ({}, (GENERATION, CONNECTOR)),
    'lora': (ADAPTERS, (GENERATION, CONNECTOR, r'/kernel/[ab]$')),
}
ENCODERS = {  # DINOv3's
    'B': {},  # as in configs/paper.py
    'S': {'layers': 12, 'width': 384, 'heads': 6, 'feedforward': 1536},
}


def get_config(variant: str = 'full/B'):
    what, _, size = variant.partition('/')
    config = paper.get_config('joint/0.6B')
    adapters, fast = choose('configs/finetune.py:variant', what, VARIANTS)
    config.lora.update(adapters)
    paper.encoder(
        config.model, **choose('configs/finetune.py:variant/encoder', size or 'B', ENCODERS)
    )
    config.steps = 20_000
    config.data.batch_size = config.optimizer.grad_accum_steps = 8
    config.data.update(threads=4, prefetch=8)
    config.optimizer.lr_multipliers = tuple((pattern, 4.0) for pattern in fast)
    config.ema.warmup = True  # there is no average of an earlier stage to continue
    config.log.samples_every = 1000
    config.checkpoint.update(every=500, keep=2, keep_period=0)
    return config
