"""The paper's controlled comparison on procedural scenes: one variant for each arm.

python -m rf_jax.train --config=configs/scenes.py:first --workdir=runs/first
python -m rf_jax.train --config=configs/scenes.py:pixel_rf --workdir=runs/pixel_rf \
    --config.initialise_from=runs/first

`first` is the stage that all arms start from: it is trained on understanding images and text, and
generates nothing. The latent arms, `vae` and `vae_rf`, also need the stage `autoencoder`:
`--config.initialise_from=runs/first,runs/autoencoder`.
Arms differ only by the lines of their function. `python -m rf_jax.study` runs them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from configs import base
from configs.stages import GENERATION
from rf_jax.runtime.errors import choose

# Generation groups start as copies of the understanding group; in the paper, of the language model.
GROUPS = ((r'^backbone/layers/(representation|pixels)', 'backbone/layers/understanding'),)
# The same if the first stage has shared attention, and the arm has one per group.
SPLIT = (
    (r'/understanding_(attention|output)/', r'/\1/'),
    (r'/understanding/norm/', '/ffn_norm/'),
)
# Parameters that the first stage does not have.
NEW = (r'^(representation_|patch_)', r'^codebook$')


def first(config):
    """Understanding only: captions, questions, and text."""
    config.steps = 1200
    understanding(config)
    config.data.capacity.update(text=72, vision=27, vision_images=3)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.lr_multipliers = ()


def autoencoder(config):
    """The VAE only."""
    config.steps = 1000
    config.data.tasks.update(text_to_image=1.0, image_to_text=0.0)
    config.data.text_dropout = 1.0
    config.data.capacity.update(vision=0, vision_images=0, representation=0)
    config.model.representation.kind = 'none'
    config.data.representation_tokens = False
    config.model.space = 'vae'
    config.losses.update(text=0.0, representation=0.0, flow=0.0, reconstruction=1.0, kl=1e-3)
    config.optimizer.freeze = (r'^(?!autoencoder/)',)
    config.optimizer.learning_rate = 2e-3
    config.optimizer.lr_multipliers = ()


def pixel(config):
    """Plain pixels."""
    config.model.representation.kind = 'none'
    config.data.representation_tokens = False
    config.data.capacity.representation = 0


def pixel_rf(config):
    """The paper's method: `get_config` without changes."""


def vae(config):
    """Latents of the frozen autoencoder; the paper uses the pretrained Wan 2.1 VAE."""
    pixel(config)
    _latents(config)


def vae_rf(config):
    """The same with representation forcing."""
    _latents(config)


def repa(config):
    """Pixels, with hidden states aligned to the encoder's features. The paper's teacher is
    pretrained; this one is trained on the same scenes.
    """
    config.model.representation.kind = 'alignment'
    config.data.representation_tokens = False
    config.data.capacity.representation = 0


def continuous(config):
    """Features in place of discrete tokens, by plain squared-error regression.

    It predicts the mean over all images that fit the prompt, so diversity collapses. As an
    example of its continuous arm, the paper names a diffusion head at each position, which samples
    features.
    """
    config.model.representation.kind = 'continuous'


def understanding(config):
    """Reference: continues to train understanding, generates nothing."""
    config.data.tasks.text_to_image = 0.0
    config.data.capacity.update(representation=0, pixels=0, pixel_images=0)
    config.losses.flow = config.losses.representation = 0.0
    config.model.representation.kind = 'none'
    config.data.representation_tokens = False


def generation(config):
    """Reference: representation forcing without understanding."""
    config.data.tasks.image_to_text = 0.0
    config.data.capacity.update(vision=0, vision_images=0)
    config.optimizer.freeze = (r'^encoder/',)  # no loss would keep it in place


def frozen(config):
    """The encoder of the first stage, frozen."""
    config.optimizer.freeze = (r'^encoder/',)


def codes(count: int):
    def change(config):
        config.model.representation.codebook_size = count

    return change


def quantizer(mode: str):
    def change(config):
        config.model.representation.quantizer.mode = mode

    return change


def pool(side: int):
    def change(config):
        config.model.representation.pool = side
        config.data.capacity.representation = (
            config.data.capacity.pixels // side**2 + config.data.capacity.pixel_images
        )

    return change


def split_full(config):
    config.model.backbone.split = 'full'
    config.initialise_as = (*GROUPS, *SPLIT)


def split_none(config):
    config.model.backbone.split = 'none'


def _latents(config):
    config.model.space = 'vae'
    config.optimizer.freeze = (r'^autoencoder/',)


@dataclass(frozen=True)
class Arm:
    """`change(config)`, and the stages whose weights the arm starts from."""

    change: Callable
    needs: tuple[str, ...] = ('first',)


STAGES = {'first': Arm(first, ()), 'autoencoder': Arm(autoencoder, ())}
ARMS = {
    'pixel': Arm(pixel),
    'pixel_rf': Arm(pixel_rf),
    'vae': Arm(vae, ('first', 'autoencoder')),
    'vae_rf': Arm(vae_rf, ('first', 'autoencoder')),
    'repa': Arm(repa),
    'continuous': Arm(continuous),
    'understanding': Arm(understanding),
    'generation': Arm(generation),
    'frozen': Arm(frozen),
    **{f'codes_{count}': Arm(codes(count)) for count in (32, 128)},
    **{f'quantizer_{mode}': Arm(quantizer(mode)) for mode in ('printed', 'sinkhorn')},
    'pool_1': Arm(pool(1)),
    'split_full': Arm(split_full),
    'split_none': Arm(split_none),
    'scratch_pixel': Arm(pixel, ()),
    'scratch_pixel_rf': Arm(pixel_rf, ()),
}


def continued(config) -> None:
    """Goes on from `pixel_rf`, which has all parameters, and an average to continue."""
    config.initialise_new = config.initialise_as = ()
    config.model.representation.quantizer.data_init_steps = ()
    config.optimizer.lr_multipliers = ()


def get_config(variant: str = 'pixel_rf'):
    arm = choose('configs/scenes.py:variant', variant, STAGES | ARMS)
    config = base.get_config()
    config.steps = 6000
    data = config.data
    data.sources = 'scenes:aligned/48'
    data.batch_size = 24
    data.patch_size = 8
    data.sizes = ((48, 1.0),)
    data.max_text_tokens = 44
    data.label_prob = 1.0  # captions already vary in wording
    data.question_prob = 0.6
    data.capacity.update(
        text=48, vision=9, representation=10, pixels=36, vision_images=1, pixel_images=1
    )
    config.tokenizer.vocab_size = 512
    backbone, encoder = config.model.backbone, config.model.encoder
    backbone.layers, backbone.width, backbone.feedforward = 4, 128, 384
    # With 10,000, which is meant for long texts, neighbouring patches have nearly equal positions,
    # and it was luck at which step (1,000 or 2,550) patches learned to attend to their token.
    backbone.rope_theta = 100.0
    # With a layer scale of 1 and one register, the first stage stored the whole scene in patches of
    # bare ground: 3.0 bits of a token had no cause in the patches under it (64 codes); here 1.5.
    encoder.layer_scale = 0.1
    representation = config.model.representation
    # 42 looks and the ground. With random initialisation, most prototypes represented ground and
    # 65 % of the looks shared a prototype; with prototypes far from each other, none did.
    representation.codebook_size = 48
    representation.position_grid = 8
    representation.quantizer.mode = 'nearest'
    representation.quantizer.data_init = 'farthest'
    # Without them, patches had the content of their token but did not know which quarter of it.
    config.model.denoiser.sinusoids = True
    config.optimizer.learning_rate = 5e-4
    config.optimizer.lr_multipliers = ((GENERATION, 4.0),)  # as in the paper
    config.flow.time_mean, config.flow.time_std, config.flow.shift = -0.4, 1.0, 4.0
    config.ema.decay = config.ema.encoder_decay = 0.998
    config.flow.base_pixels = 48 * 48
    config.checkpoint.every = 500
    config.evaluation.samples = 96
    if arm.needs:
        config.initialise_new, config.initialise_as = NEW, GROUPS
        config.ema.warmup = False  # continues the average of the first stage
    arm.change(config)
    return config
