"""Unified-GRPO on scenes (UAE, arXiv 2509.09666): understanding writes an image as text, generation
makes an image of the text, and one reward, the similarity of both images, trains either or both.

python -m rf_jax.train --config=configs/posttraining/unified_grpo.py:long_caption \\
    --workdir=runs/long_caption --config.initialise_from=runs/pixel_rf
python -m rf_jax.reinforce --config=configs/posttraining/unified_grpo.py:understanding \\
    --workdir=runs/understanding --config.initialise_from=runs/long_caption
python -m rf_jax.reinforce --config=configs/posttraining/unified_grpo.py:generation \\
    --workdir=runs/generation --config.initialise_from=runs/understanding

`long_caption` trains the decoder, and captions, on long captions. `understanding` (generation for
understanding): the policy writes captions, decoder and reward are frozen. `generation`
(understanding for generation): the policy generates, captions are frozen. `both` in place of these
two: one policy, both directions.
"""

from configs import scenes
from configs.posttraining import grpo
from rf_jax.runtime.errors import choose

CAPTION = 44  # most tokens of a long caption


def long_caption(config):
    """Supervised: the paper's first stage."""
    config.steps = 500
    config.data.question_prob = 0.0
    config.optimizer.update(learning_rate=5e-4, warmup_steps=50, decay_steps=250)


def understanding(config):
    """The paper's second stage."""
    _reinforced(config, 'describe', ('text',))


def generation(config):
    """The paper's third stage."""
    _reinforced(config, 'reconstruct', ('representation',))


def both(config):
    """The single-policy form."""
    _reinforced(config, 'both', ('text', 'representation'))
    config.data.batch_size = 128  # two rows a sample


def _reinforced(config, episode: str, policies: tuple[str, ...]):
    grpo.reinforce(config, policies, grpo.FAST)
    config.grpo.episode = episode
    config.grpo.text_tokens = CAPTION
    # The reward; what it does to objects and length is logged beside it.
    config.grpo.rewards = (('similarity', 1.0), ('recovered', 0.0), ('words', 0.0))


STAGES = {
    'long_caption': long_caption,
    'understanding': understanding,
    'generation': generation,
    'both': both,
}


def get_config(stage: str = 'both'):
    change = choose('configs/posttraining/unified_grpo.py:stage', stage, STAGES)
    config = scenes.get_config('pixel_rf')
    grpo.start(config, steps=200)
    config.data.sources = 'scenes:aligned/48/long'
    config.data.capacity.text = 64
    config.data.max_text_tokens = 64
    config.sampling.max_answer_tokens = CAPTION
    change(config)
    return config
