"""The paper's three stages at its size, and the same for three dense models like Qwen3's. The first
starts from published weights (docs/weights.md):

python -m rf_jax.train --config=configs/paper.py:alignment --workdir=runs/alignment \\
    --config.initialise_from=hf:/models/Qwen3-30B-A3B,hf:/models/dinov3-vith16plus

configs/paper.py:joint (30B-A3B), configs/paper.py:joint/1.7B, .../0.6B, .../0.3B; likewise
`alignment`, `continued`, and `text_only`, to compare with language-model trainers
(docs/scaling.md). configs/stages.py has the stages at the size of a laptop.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from configs import base
from configs.scenes import GROUPS, NEW
from configs.stages import GENERATION
from rf_jax.runtime.errors import choose


def sparse_30b(config: ConfigDict) -> None:
    """Qwen3-30B-A3B in each of the three groups, and DINOv3 ViT-H+/16 (paper, section 4.1)."""
    model = config.model
    model.backbone.update(layers=48, width=2048, heads=32, kv_heads=4)
    model.backbone.ffn = 'moe'
    model.backbone.moe.update(num_experts=128, top_k=8, feedforward=768)
    encoder(model, layers=32, width=1280, heads=20, feedforward=5120, gated=True)
    # Qwen3's router_aux_loss_coef, in the same scale: 8 of an even load, as in transformers. Qwen3
    # has no z-loss (ST-MoE: 1e-3); a little keeps logits small.
    config.losses.update(balance=1e-3, router_z=1e-4)
    config.data.batch_size = 512  # one row per chip of v5p:8x8x8
    # A host has four rows, not next to each other: two windows of each are 4 GB in a bucket.
    config.data.update(lanes=-1, cache_megabytes=4096)
    # Each of 128 chips holds one of the 128 experts, and the four such groups of chips (`data`)
    # shard its rows. A matrix sharded over all 512 chips would be less than a memory tile per chip,
    # and be padded to one.
    config.mesh.update(data=-1, fsdp=128)
    config.sharding = ((r'(gate|up|down)$', (('expert', 'fsdp'), 'data', None)), *config.sharding)


def dense_1b7(config: ConfigDict) -> None:
    """Qwen3-1.7B with three feed-forwards, and DINOv3 ViT-L/16: 4.5 B parameters."""
    model = config.model
    model.backbone.update(layers=28, width=2048, heads=16, kv_heads=8, feedforward=6144)
    encoder(model, layers=24, width=1024, heads=16, feedforward=4096)
    # For chips of 16 GB: 73 GB of state on eight of them.
    config.offload = ('ema', 'opt_state')
    model.backbone.remat = 'full'


def dense_0b6(config: ConfigDict) -> None:
    """Qwen3-0.6B with three feed-forwards, and DINOv3 ViT-B/16: 1.4 B parameters."""
    model = config.model
    model.backbone.update(layers=28, width=1024, heads=16, kv_heads=8, feedforward=3072)
    model.backbone.remat = 'feedforward'
    encoder(model, layers=12, width=768, heads=12, feedforward=3072)


def dense_0b3(config: ConfigDict) -> None:
    """For one GPU: a smaller model of the same kind, and DINOv3 ViT-S/16: 0.3 B parameters."""
    model = config.model
    model.backbone.update(layers=12, width=768, heads=8, kv_heads=4, feedforward=2048)
    model.backbone.remat = 'projections'
    encoder(model, layers=12, width=384, heads=6, feedforward=1536)
    config.tokenizer.vocab_size = 32_768  # Qwen3's vocabulary alone would be 0.23 B parameters


def encoder(model: ConfigDict, **changes) -> None:
    """A DINOv3 encoder."""
    model.encoder.update(registers=4, layer_scale=1e-5, remat='attention', **changes)
    model.encoder.update(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))


# Fields that no stage or size changes from configs/base.py, and why; the name of a group stands for
# all of its fields. tests/config/test_paper_configs.py checks that the list is complete.
KEPT = {
    'seed': 'any',
    'initialise_from': 'given on the command line, like the tokenizer',
    'tokenizer.path': 'see initialise_from',
    'compilation_cache': 'of the machine',
    'data.workers': 'threads suffice (docs/data.md#how-fast-batches-are-made)',
    'data.patch_size': 'paper',
    'data.question_prob': 'paper: silent; the rest are captions',
    'data.text_dropout': 'paper',
    'data.representation_dropout': 'paper',
    'data.tasks.conversation': 'no conversations in the sources',
    'data.tasks.image_to_pixels': 'no maps of images in the sources',
    'data.tasks.image_to_depth': 'see image_to_pixels',
    'data.tasks.image_to_segmentation': 'see image_to_pixels',
    'data.tasks.image_to_regions': 'see image_to_pixels',
    'initialise_from_average': 'paper: silent; the weights go on',
    'model.vision_gradient_scale': 'paper: none',
    'optimizer.decay_steps': 'paper: constant',
    'data.image_dropout': 'only for conversations',
    'data.joint_dropout': 'paper: none beyond the two',
    'data.dropout_keeps_positions': 'paper: silent; nothing replaces what is dropped',
    'data.prompt_loss': 'the mixture has text examples',
    'data.label_prob': 'a prepared set has unchanged captions',
    'data.weights': 'one set',
    'validation': 'your own held-out set: validation.sources',
    'data.resizer': 'equal on every machine',
    'data.max_pixels': 'larger images take seconds to decode and are reduced to 1,024 px',
    'data.representation_tokens': 'paper',
    'model.backbone.norm_eps': 'Qwen3',
    'model.backbone.split': 'paper',
    'model.backbone.unroll': 'compiles a single layer',
    'model.backbone.moe.pool': 'paper',
    'model.backbone.moe.grouped_matmul': 'the fastest of the platform',
    'model.backbone.moe.capacity_factor': 'only for mesh.expert; no token is dropped',
    'model.attention.implementation': 'the fastest of the platform',
    'model.encoder.kind': 'paper',
    'model.encoder.norm_eps': 'DINOv3',
    'model.encoder.position_grid': 'only for SigLIP2',
    'model.encoder.rope_theta': 'DINOv3',
    'model.encoder.registers': 'DINOv3',
    'model.encoder.query_value_bias': 'DINOv3',
    'model.encoder.unroll': 'compiles a single layer',
    'model.space': 'paper',
    'model.autoencoder': 'only for space vae',
    'model.wan': 'only for space wan',
    'model.representation.kind': 'paper',
    'model.representation.pool': 'paper',
    'model.representation.quantizer.mode': 'paper, as printed',
    'model.representation.quantizer.temperature': 'paper',
    'model.representation.quantizer.sinkhorn_iterations': 'paper',
    'model.representation.quantizer.pool_first': 'paper: silent',
    'model.representation.quantizer.data_init': 'farthest needs a pass over the features for each '
    'of 16,384 prototypes, and picks outliers first',
    'model.denoiser.bottleneck': 'paper: none named; JiT: 128 to 256',
    'model.denoiser.time_embed_dim': 'JiT',
    'flow.time_mean': 'JiT; paper: silent',
    'flow.time_std': 'JiT; paper: silent',
    'flow.t_eps': 'JiT; paper: silent',
    'flow.noise_scale': 'paper: unit noise',
    'flow.shift': 'none at 256 px, 2 at 512 and 4 at 1,024 by base_pixels, as BAGEL and JiT',
    'losses.text': 'paper',
    'losses.kl': 'only for an autoencoder',
    'losses.reconstruction': 'only for an autoencoder',
    'optimizer.beta1': 'paper',
    'optimizer.beta2': 'paper',
    'optimizer.epsilon': 'paper',
    'optimizer.weight_decay': 'paper',
    'optimizer.grad_clip_norm': 'paper',
    'optimizer.grad_accum_steps': 'memory is planned for the whole batch',
    'lora.rank': 'paper: everything is trained',
    'lora.alpha': 'see lora.rank',
    'lora.targets': 'see lora.rank',
    'lora.full': 'see lora.rank',
    'optimizer.max_skipped_steps': 'more skipped steps in a row are not a spike',
    'mesh': 'where a size does not set it: sharding over fsdp was cheapest, see docs/scaling.md',
    'sampling.steps': 'paper',
    'sampling.method': 'paper: 25 steps with one evaluation each',
    'sampling.temperature': 'paper: none named',
    'sampling.guidance_representation': 'paper',
    'sampling.guidance_pixels': 'paper',
    'sampling.guidance_image': 'paper: no conversations',
    'sampling.guidance_text': 'paper: one scale for both conditions',
    'sampling.guidance_interval': 'paper: none named',
    'sampling.sharding': 'the default layout works on any mesh',
    'log.samples': 'one grid',
    'log.samples_every': 'generation would stall the pod: evaluate checkpoints separately',
    'checkpoint.keep': 'one to resume from, and another in case it is damaged',
    'evaluation.samples': 'chance level is 0.5 % with 200; only at the end',
}


MODELS = {'30B-A3B': sparse_30b, '1.7B': dense_1b7, '0.6B': dense_0b6, '0.3B': dense_0b3}


def scale(size: str) -> ConfigDict:
    """`base` at the scale of the paper; the stages change the rest. `KEPT` lists what stays."""
    config = base.get_config()
    config.compute_dtype = 'bfloat16'
    config.data.sources = 'prepared:/path/to/set'  # or prepared:gs://bucket/set
    # An image takes a few milliseconds to read, and a host of a pod needs hundreds per step.
    config.data.update(threads=16, prefetch=16)
    config.tokenizer.vocab_size = 151_936  # Qwen3's
    model = config.model
    model.attention.update(block_q=256, block_k=128)  # fewer masked pairs per tile than at 512
    model.backbone.update(head_dim=128, rope_theta=1e6, remat='gate')
    model.backbone.rope_sections = (32, 16, 16)
    config.data.batch_size = 8  # one row per chip of one host
    choose('configs/paper.py:stage/size', size, MODELS)(config)
    # As in JiT and BAGEL: with the theta of Qwen3, angles hardly differ between patches.
    model.denoiser.sinusoids = True
    model.representation.alignment_layer = model.backbone.layers // 3
    model.representation.codebook_size = 16_384
    model.representation.position_grid = 32  # 1,024 px
    model.representation.quantizer.momentum = 0.9999
    # Paper: the length of the warm-up is not given.
    config.optimizer.update(learning_rate=5e-5, warmup_steps=500)
    # Paper: 0.9999. A uniform average over all steps until there are 10,000 of them.
    config.ema.update(decay=0.9999, encoder_decay=0.9999, warmup_offset=2.0)
    config.flow.base_pixels = 256 * 256
    config.sampling.top_k = 1000  # paper: top-k, k not given; LlamaGen's k for as many codes
    config.sampling.max_answer_tokens = 128  # captions are sentences, not names
    config.log.every = 20
    # A checkpoint of 30B-A3B is 1.4 TB: keep the newest two, and every 10,000 steps, as stages end.
    config.checkpoint.update(every=500, keep=2, keep_period=10_000)
    return config


def row(config: ConfigDict, **tokens: int) -> None:
    """Capacities of a row of 32,768 tokens, or a quarter of that for the dense models."""
    factor = 1 if is_paper_size(config) else 4
    config.data.capacity.update({name: count // factor for name, count in tokens.items()})


def is_paper_size(config: ConfigDict) -> bool:
    """Whether it is the paper's own model, not one of the dense ones."""
    return config.model.backbone.ffn == 'moe'


def alignment(config: ConfigDict) -> None:
    """Stage 1: connector only, 10K steps."""
    config.steps = 10_000
    config.data.max_text_tokens = 512
    config.data.sizes = ((256, 1.0),)
    config.data.tasks.update(text_to_image=0.0, image_to_text=1.0, text_only=0.0)
    # As `rf_jax.packing_report` recommends: 355 images of 256 px.
    row(config, text=10_048, vision=22_720, representation=0, pixels=0,
        vision_images=628, pixel_images=0)  # fmt: skip
    if is_paper_size(config):  # the frozen encoder saves no activations, which leaves memory
        config.model.backbone.remat = 'feedforward'
    config.losses.update(representation=0.0, flow=0.0)
    config.optimizer.freeze = (r'^(?!connector/)',)
    config.initialise_as = GROUPS  # from the language model, as in the next stage


def joint(config: ConfigDict) -> None:
    """Stage 2: everything is trained, images up to 256 px, 50K steps."""
    config.steps = 50_000
    config.data.max_text_tokens = 512
    config.data.sizes = ((256, 1.0),)
    # Paper: text, image-to-text and text-to-image, weights not given.
    config.data.tasks.update(text_to_image=0.6, image_to_text=0.3, text_only=0.1)
    # As `rf_jax.packing_report` recommends: 83 images of 256 px to generate, 42 to caption.
    row(config, text=3328, vision=2688, representation=5440, pixels=21_312,
        vision_images=76, pixel_images=148)  # fmt: skip
    config.optimizer.lr_multipliers = ((GENERATION, 4.0),)
    # All three groups start from the language model. The EMA of new parameters covers only their
    # own steps; the rest continues the EMA of the previous stage.
    config.initialise_new, config.initialise_as = NEW, GROUPS
    config.ema.warmup = False


def continued(config: ConfigDict) -> None:
    """Stage 3: images up to 1,024 px (dense models: 512), half the learning rate, 20K steps."""
    joint(config)
    config.steps = 20_000
    large = is_paper_size(config)
    config.data.sizes = ((1024 if large else 512, 0.6), (512 if large else 256, 0.4))
    config.data.max_text_tokens = 128
    # As `rf_jax.packing_report` recommends: 5 images of 1,024 px to generate, 2 to caption.
    row(config, text=640, vision=2912, representation=5856, pixels=23_360,
        vision_images=16, pixel_images=32)  # fmt: skip
    config.optimizer.learning_rate /= 2
    config.model.representation.quantizer.data_init_steps = ()
    # Nothing is new: everything continues from `joint`.
    config.initialise_new = config.initialise_as = ()


def text_only(config: ConfigDict) -> None:
    """Text alone: one expert group with one pool; no representation, no flow, an unused encoder."""
    config.data.sources = 'text:/path/to/documents'
    config.data.tasks.update(text_to_image=0.0, image_to_text=0.0, text_only=1.0)
    config.data.max_text_tokens = 4096
    config.data.representation_tokens = False
    row(config, text=32_768, vision=0, representation=0, pixels=0,
        vision_images=0, pixel_images=0)  # fmt: skip
    model = config.model
    model.backbone.split = 'none'
    model.representation.kind = 'none'
    model.encoder.update(layers=1, width=128, heads=2, feedforward=384)
    config.losses.update(representation=0.0, flow=0.0)


STAGES: dict[str, Callable[[ConfigDict], None]] = {
    'alignment': alignment,
    'joint': joint,
    'continued': continued,
    'text_only': text_only,
}


def get_config(variant: str = 'joint') -> ConfigDict:
    """A stage, and after a slash a size of MODELS; without one, the paper's."""
    stage, _, size = variant.partition('/')
    change = choose('configs/paper.py:stage', stage, STAGES)
    config = scale(size or '30B-A3B')
    change(config)
    return config
