"""Qwen3-0.6B and a DINOv3 encoder learn to generate images, on one GPU of 80 GB.

python -m rf_jax.train --config=configs/finetune.py --workdir=runs/qwen \\
    --config.initialise_from=hf:/models/Qwen3-0.6B,hf:/models/dinov3-vitb16 \\
    --config.data.sources=folder:/path/to/images

It is the paper's second stage (configs/paper.py:joint/0.6B) with a new connector, since there is no
first stage, and one row of 8,192 tokens at a time.
"""

from configs import paper
from configs.stages import GENERATION
from rf_jax.runtime.errors import choose

ENCODERS = {  # DINOv3's
    'B': {'layers': 12, 'width': 768, 'heads': 12, 'feedforward': 3072},
    'S': {'layers': 12, 'width': 384, 'heads': 6, 'feedforward': 1536},
}


def get_config(encoder: str = 'B'):
    config = paper.get_config('joint/0.6B')
    size = choose('configs/finetune.py:encoder', encoder, ENCODERS)
    paper.encoder(config.model, **size)
    config.steps = 20_000
    config.data.batch_size = config.optimizer.grad_accum_steps = 8
    config.data.update(threads=4, prefetch=8)
    config.optimizer.lr_multipliers = ((GENERATION, 4.0), (r'^connector/', 4.0))
    config.checkpoint.update(every=500, keep=2, keep_period=0)
    return config
