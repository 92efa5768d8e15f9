"""configs/scenes.py with the same pictures cut finer: 16 pixel tokens for a representation token.

python -m rf_jax.study --config=configs/study.py:fine --workdir=runs/study_fine

Patches are half as wide, so there are four times the pixel tokens and vision tokens; a
representation token still stands for a cell of the scene. With half the rows a step costs half as
much again.
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
