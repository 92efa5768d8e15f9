"""Thinking before an image, and looking at it afterwards, on scenes; starts from the study's
pixel_rf.

python -m rf_jax.train --config=configs/posttraining/think.py:think --workdir=runs/think \\
    --config.initialise_from=runs/pixel_rf

`think`: the assistant writes the literal caption of a riddle, then generates the image (after
Think-Then-Generate, arXiv 2601.10332); for a literal prompt, the image alone. `direct`: the same
riddles and images without the caption.
`redraw`: it says what is wrong with a draft and generates the image again, unless nothing is (after
Interleaving Reasoning Generation, arXiv 2509.06945).
"""

from configs import scenes
from rf_jax.runtime.errors import choose

VARIANTS = {
    # option of the source, and text tokens of a row and of a turn with its answer, of which the
    # turn has half: riddles are up to 58, prompts of `redraw` are short
    'think': ('riddles=think', 160, 128),
    'direct': ('riddles=direct', 160, 128),
    'redraw': ('critique', 96, 96),
}


def get_config(variant: str = 'think'):
    option, row, turn = choose('configs/posttraining/think.py:variant', variant, VARIANTS)
    config = scenes.get_config('pixel_rf')
    scenes.continued(config)
    config.steps = 1500
    config.optimizer.decay_steps = 500
    config.ema.decay = config.ema.encoder_decay = 0.99  # a short run
    data = config.data
    data.sources = f'scenes:aligned/48/{option}'
    data.batch_size = 12
    data.tasks.update(text_to_image=0.2, image_to_text=0.2, conversation=1.0)
    # A row has two images to generate: two riddles, or a draft and the image after it. It has room
    # for the text of both, so that thoughts leave out no images.
    data.capacity.update(
        text=row, vision=27, representation=20, pixels=72, vision_images=3, pixel_images=2
    )
    data.max_text_tokens = turn
    return config
