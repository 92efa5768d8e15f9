"""GRPO on a trained run: reinforcement of representation tokens, of the flow, or of both.

python -m rf_jax.reinforce --config=configs/posttraining/grpo.py:representation \
    --workdir=runs/reinforced --config.initialise_from=runs/pixel_rf

Formulas: docs/post_training.md.
"""

from ml_collections import ConfigDict

from configs import scenes
from rf_jax.runtime.errors import choose

# Adam gives the noisy gradient of the flow the same size as any other: what the flow uses must
# learn more slowly, or images fall apart within 100 steps.
FAST = {
    'learning_rate': 3e-4,
    'lr_multipliers': ((r'^(patch_|backbone/layers/pixels)', 0.1),),
}
SLOW = {'learning_rate': 3e-5, 'lr_multipliers': ()}
# What is trained, and how fast.
POLICIES = {
    'representation': (('representation',), FAST),
    'flow': (('flow',), SLOW),
    'both': (('representation', 'flow'), FAST),
}


def fields() -> ConfigDict:
    """The fields of `config.grpo`."""
    grpo = ConfigDict()
    # generate | answer | describe | reconstruct | both | think: see
    # rf_jax/posttraining/episodes.py.
    grpo.episode = 'generate'
    grpo.policies = ('representation',)  # which of text, representation, flow are trained
    # What `generate` and `think` ask for: captions (of data.sources) | seen | held_out | all
    # (prompts about scenes in GenEval's categories) | riddles.
    grpo.prompts = 'seen'
    # Samples of one prompt or image; Flow-GRPO: 24. Where the policy writes, its texts, and images
    # of each text, whose mean reward is that of the text; Think-Then-Generate: 5 texts.
    grpo.group_size = 8
    grpo.images = 1
    grpo.updates = 1  # optimizer steps of data.batch_size rows on one rollout
    grpo.std = 'group'  # group | global: standard deviation that advantages are divided by
    # (name, weight): judge | recovered | exact_answer | words | similarity; 0: only logged. As a
    # flag: --config.grpo.rewards="(('judge', 1.0), ('words', 0.0))".
    grpo.rewards = (('judge', 1.0),)
    grpo.reward_seconds = 60.0  # longest time of a reward of a group, which is left out then
    # Of the ratio, by policy. A flow's log-probability is a mean over its values; Flow-GRPO: 1e-4.
    grpo.clip = ConfigDict({'text': 0.2, 'representation': 0.2, 'flow': 1e-4})
    # Weight of the KL to the reference, by policy; Flow-GRPO: 0.04, for flows without dt.
    grpo.kl = ConfigDict({'text': 0.0, 'representation': 0.0, 'flow': 0.0})
    # Workdir of the run whose average is the reference and the frozen decoder; '': initialise_from.
    grpo.reference = ''
    grpo.text_tokens = 16  # most tokens of a text
    flow = grpo.flow = ConfigDict()
    flow.steps = 10  # of a rollout; Flow-GRPO: 10, and 40 at evaluation
    # First step with noise, and first without again: the steps between are trained.
    flow.stochastic = (0, 5)
    flow.sampler = 'marginal'  # marginal (Flow-GRPO) | preserving (arXiv 2509.05952)
    flow.level = 0.7  # of the noise; Flow-GRPO: 0.7, preserving: 0.8
    flow.kl_with_dt = True  # the KL of the paper; the authors' code leaves out the step size
    return grpo


def start(config: ConfigDict, steps: int) -> None:
    """What all post-training of the study's `pixel_rf` has in common."""
    config.steps = steps
    config.initialise_from_average = True
    scenes.continued(config)


def reinforce(
    config: ConfigDict, policies: tuple[str, ...], rates: dict, patches: int = 36
) -> None:
    """Adds `config.grpo` with these policies; a batch has 8 groups of 8 samples. `patches`: of an
    image, the largest that the run generates.
    """
    with config.unlocked():
        config.grpo = fields()
    config.grpo.policies = policies
    config.data.batch_size = 64
    # The trained steps of the flow stand in one row, each with its own noisy image.
    first, last = config.grpo.flow.stochastic
    steps = last - first if 'flow' in policies else 1
    config.data.capacity.update(pixels=patches * steps, pixel_images=steps)
    # Latents must not move either.
    frozen = (r'^encoder/', *((r'^autoencoder/',) if config.model.space != 'pixels' else ()))
    config.optimizer.update(warmup_steps=10, weight_decay=0.0, freeze=frozen, **rates)
    config.ema.decay = config.ema.encoder_decay = 0.95
    config.checkpoint.every = 20
    config.log.every = 5


def get_config(policies: str = 'both'):
    trained, rates = choose('configs/posttraining/grpo.py:policies', policies, POLICIES)
    config = scenes.get_config('pixel_rf')
    start(config, steps=200)
    reinforce(config, trained, rates)
    return config
