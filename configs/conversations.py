"""Conversations about procedural scenes: questions that follow up, edits, images compared.

python -m rf_jax.train --config=configs/scenes.py:first --workdir=runs/first
python -m rf_jax.train --config=configs/scenes.py:pixel_rf --workdir=runs/pixel_rf \
    --config.initialise_from=runs/first
python -m rf_jax.train --config=configs/conversations.py --workdir=runs/conversations \
    --config.initialise_from=runs/pixel_rf

`configs/conversations.py:first` starts from runs/first instead and learns to generate as well.
"""

from configs import scenes
from rf_jax.runtime.errors import choose


def get_config(start: str = 'pixel_rf'):
    choose('configs/conversations.py:start', start, dict.fromkeys(('pixel_rf', 'first')))
    config = scenes.get_config('pixel_rf')
    config.steps = 6000
    config.optimizer.decay_steps = 1000
    data = config.data
    data.sources = 'scenes:aligned/48/conversations'
    data.batch_size = 12
    # Up to four exchanges, three images to read and two to generate.
    data.capacity.update(
        text=96, vision=27, representation=20, pixels=72, vision_images=3, pixel_images=2
    )
    data.max_text_tokens = 96  # a turn of the user has half of it: long descriptions are 48
    data.tasks.update(text_to_image=0.2, image_to_text=0.2, conversation=1.0)
    if start == 'pixel_rf':
        scenes.continued(config)
    return config
