"""configs/scenes.py with smaller patches: 16 pixel tokens for each representation token.

python -m rf_jax.study --config=configs/study.py:fine --workdir=runs/study_fine

Patches are half as wide, so there are four times as many pixel and vision tokens; a representation
token still covers one cell of the scene. With half the batch size, a step costs one and a half
times as much.
"""

from configs import scenes

ARMS, STAGES = scenes.ARMS, scenes.STAGES


def get_config(variant: str = 'pixel_rf'):
    config = scenes.get_config(variant)
    config.data.patch_size //= 2
    config.data.batch_size //= 2
    config.data.capacity.vision *= 4
    config.data.capacity.pixels *= 4
    config.model.representation.pool *= 2
    return config
