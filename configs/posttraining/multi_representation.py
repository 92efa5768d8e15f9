"""Post-training on several representations of an image (UniMRG, arXiv 2601.21406), on scenes.

python -m rf_jax.train --config=configs/posttraining/multi_representation.py:full \\
    --workdir=runs/full --config.initialise_from=runs/pixel_rf

It starts from the study's pixel_rf. Beside questions about an image, the model learns to draw it
again, its depth, and the outlines of its objects. Arms: `understanding` (no maps), `pixels`,
`depth` (pixels and depth), `segmentation` (pixels and outlines), `full` (all).

Every arm sees as many questions per step, in rows of one question, one prompt and one map of each
kind: maps come on top. As in UniMRG, where a step has a batch of each task, arms are compared at
equal steps and equal numbers of questions, not at equal cost (`full` costs 3.6 times
`understanding` in FLOPs). The loss of each task has weight 1, also as there. Unlike there, every
arm goes on drawing from text: without it, 1,000 steps of `full` took drawing from 0.77 to 0.43;
with it, to 0.69. image_to_text asks questions only, since they are scored; the
encoder serves generation too, so it is trained.
"""

from configs import scenes
from rf_jax.runtime.errors import choose

ARMS = {
    'understanding': (),
    'pixels': ('pixels',),
    'depth': ('pixels', 'depth'),
    'segmentation': ('pixels', 'segmentation'),
    'full': ('pixels', 'depth', 'segmentation'),
}
_INSTRUCTION = 20  # text tokens of an exchange about a map, on average at most
_PROMPT = 30  # and of a prompt

# Text tokens that a question and a map add to the loss on average; of a map, `<image>` and `<eos>`.
_QUESTION, _MAP = 2.6, 1.6


def get_config(arm: str = 'full'):
    maps = choose('configs/posttraining/multi_representation.py:arm', arm, ARMS)
    config = scenes.get_config('pixel_rf')
    scenes.continued(config)
    config.steps = 1000
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 50
    config.optimizer.decay_steps = 500
    config.ema.decay = config.ema.encoder_decay = 0.99  # a short run
    data = config.data
    data.batch_size = 16  # questions per step, and maps of each kind
    data.question_prob = 1.0
    data.tasks.update({f'image_to_{name}': 1.0 for name in maps})
    count = len(maps)
    data.capacity.update(
        text=data.max_text_tokens + _PROMPT + _INSTRUCTION * count,
        vision=9 + 18 * count,  # a map is read after it is drawn
        vision_images=1 + 2 * count,
        representation=10 * (1 + count),
        pixels=36 * (1 + count),
        pixel_images=1 + count,
    )
    # Losses are means over all tokens of a step: so weighted, those of the questions count as much
    # in every arm, and so do those of each map.
    config.losses.text = 1 + count * _MAP / _QUESTION
    config.losses.representation = config.losses.flow = 1.0 + count
    return config
