"""Two-level GRPO on a model that thinks before an image (Think-Then-Generate, arXiv 2601.10332).

python -m rf_jax.reinforce --config=configs/posttraining/thoughts.py:both \\
    --workdir=runs/thoughts --config.initialise_from=runs/think

It starts from a run of configs/posttraining/think.py:think. The policy writes four thoughts for
each riddle, and generates four images after each. `text` trains the thoughts, by the mean reward of
their images; `representation` the tokens of the images, each compared with those after the same
thought; `both` both. The reward is the judge's, of what the riddle means.

The thoughts of that run are nearly always right; their KL to the reference keeps them from
drifting. Training the images changes the thoughts too, since both use the same attention, and no
reward notices, as an image is compared only with images of its own thought.
"""

from configs.posttraining import grpo, think
from rf_jax.runtime.errors import choose

POLICIES = {
    'text': ('text',),
    'representation': ('representation',),
    'both': ('text', 'representation'),
}


def get_config(policies: str = 'both'):
    trained = choose('configs/posttraining/thoughts.py:policies', policies, POLICIES)
    config = think.get_config('think')
    grpo.start(config, steps=200)
    config.optimizer.decay_steps = 0
    # At 3e-4, with four riddles a batch, thoughts and images got worse.
    grpo.reinforce(config, trained, grpo.FAST | {'learning_rate': 1e-4})
    # A row has one riddle, its thought and one image; vision is for the chat of the evaluation.
    config.data.capacity.update(text=128, vision=9, vision_images=1, representation=10)
    config.grpo.update(episode='think', prompts='riddles', group_size=4, images=4)
    config.grpo.rewards = (('judge', 1.0), ('words', 0.0))
    config.grpo.kl.text = 0.3
    return config
