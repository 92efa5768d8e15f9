"""The paper's model, and two dense ones of Qwen3's family; the stages of this folder share it."""

from ml_collections import ConfigDict

from configs import base
from rf_jax.runtime.errors import choose


def sparse_30b(config: ConfigDict) -> None:
    """Qwen3-30B-A3B in each of the three groups, and DINOv3 ViT-H+/16 (paper, section 4.1)."""
    model = config.model
    model.backbone.update(layers=48, width=2048, heads=32, kv_heads=4)
    model.backbone.ffn = 'moe'
    model.backbone.moe.update(num_experts=128, top_k=8, feedforward=768)
    encoder(model, layers=32, width=1280, heads=20, feedforward=5120, gated=True)
    # Qwen3's router_aux_loss_coef; it has no z-loss, ST-MoE 1e-3: a little keeps logits small.
    config.losses.update(balance=1e-3, router_z=1e-4)
    config.data.batch_size = 512  # one a chip of v5p:8x8x8
    # Each of 128 chips holds one of the 128 experts, and four such groups of chips (`data`) a
    # quarter of its rows each: those of one matrix over 512 chips would be less than a tile of
    # memory, and be padded to one.
    config.mesh.update(data=-1, fsdp=128)
    config.sharding = ((r'(gate|up|down)$', (('expert', 'fsdp'), 'data', None)), *config.sharding)


def dense_1b7(config: ConfigDict) -> None:
    """Qwen3-1.7B with three feed-forwards, and DINOv3 ViT-L/16: 4.5 B parameters."""
    model = config.model
    model.backbone.update(layers=28, width=2048, heads=16, kv_heads=8, feedforward=6144)
    encoder(model, layers=24, width=1024, heads=16, feedforward=4096)
    # For chips of 16 GB, eight of which hold 73 GB of state.
    config.offload = ('ema', 'opt_state')
    model.backbone.remat = 'full'


def dense_0b6(config: ConfigDict) -> None:
    """Qwen3-0.6B with three feed-forwards, and DINOv3 ViT-B/16: 1.4 B parameters."""
    model = config.model
    model.backbone.update(layers=28, width=1024, heads=16, kv_heads=8, feedforward=3072)
    model.backbone.remat = 'feedforward'
    encoder(model, layers=12, width=768, heads=12, feedforward=3072)


def dense_0b3(config: ConfigDict) -> None:
    """For one GPU: a narrower model of the same kind, and DINOv3 ViT-S/16: 0.3 B parameters."""
    model = config.model
    model.backbone.update(layers=12, width=768, heads=8, kv_heads=4, feedforward=2048)
    model.backbone.remat = 'projections'
    encoder(model, layers=12, width=384, heads=6, feedforward=1536)
    config.tokenizer.vocab_size = 32_768  # Qwen3's alone would be 0.23 B parameters


def encoder(model: ConfigDict, **changes) -> None:
    """A DINOv3 encoder."""
    model.encoder.update(registers=4, layer_scale=1e-5, remat='attention', **changes)


# Fields that every stage and size takes from configs/base.py, and why; a group's name stands for
# the fields within. tests/configs/test_paper_configs.py holds the list complete.
KEPT = {
    'seed': 'any',
    'initialise_from': 'given on the command line, like the tokenizer',
    'tokenizer.path': 'see initialise_from',
    'compilation_cache': 'of the machine',
    'data.patch_size': 'paper',
    'data.question_prob': 'paper: silent; the rest describes at once',
    'data.text_dropout': 'paper',
    'data.representation_dropout': 'paper',
    'data.joint_dropout': 'paper: none beyond the two',
    'data.dropout_keeps_positions': 'paper: silent; nothing is left in place of what is dropped',
    'data.prompt_loss': 'text of its own is in the mixture',
    'data.max_pixels': 'larger pictures cost seconds to decode and are shrunk to 1,024 px',
    'model.backbone.norm_eps': 'Qwen3',
    'model.backbone.split': 'paper',
    'model.backbone.unroll': 'compiles one layer for all',
    'model.backbone.moe.pool': 'paper',
    'model.backbone.moe.grouped_matmul': 'the fastest of the platform',
    'model.backbone.moe.capacity_factor': 'only over mesh.expert, and no token is dropped',
    'model.attention.implementation': 'the fastest of the platform',
    'model.encoder.norm_eps': 'DINOv3',
    'model.encoder.rope_theta': 'DINOv3',
    'model.encoder.registers': 'DINOv3',
    'model.encoder.unroll': 'compiles one layer for all',
    'data.representation_tokens': 'paper',
    'model.space': 'paper',
    'model.autoencoder': 'only of space vae',
    'model.representation.kind': 'paper',
    'model.representation.pool': 'paper',
    'model.representation.quantizer.mode': 'paper, as printed',
    'model.representation.quantizer.temperature': 'paper',
    'model.representation.quantizer.sinkhorn_iterations': 'paper',
    'model.representation.quantizer.pool_first': 'paper: silent',
    'model.representation.quantizer.data_init': 'spread takes a pass over the features for each of '
    '16,384 prototypes, and gives them to outliers first',
    'model.denoiser.bottleneck': 'paper: none named; JiT: 128 to 256',
    'model.denoiser.time_embed_dim': 'JiT',
    'flow.time_mean': 'JiT; paper: silent',
    'flow.time_std': 'JiT; paper: silent',
    'flow.t_eps': 'JiT; paper: silent',
    'flow.noise_scale': 'paper: unit noise',
    'flow.shift': 'none at 256 px, 2 at 512 and 4 at 1,024 by base_pixels, as BAGEL and JiT',
    'losses.text': 'paper',
    'losses.kl': 'only of an autoencoder',
    'losses.reconstruction': 'only of an autoencoder',
    'optimizer.beta1': 'paper',
    'optimizer.beta2': 'paper',
    'optimizer.epsilon': 'paper',
    'optimizer.weight_decay': 'paper',
    'optimizer.grad_clip_norm': 'paper',
    'optimizer.grad_accum_steps': 'memory is planned for the whole batch',
    'optimizer.max_skipped_steps': 'by then it is no spike',
    'mesh': 'what a size does not set: sharding over fsdp was cheapest, see docs/scaling.md',
    'sampling.steps': 'paper',
    'sampling.method': 'paper: 25 steps, of one evaluation each',
    'sampling.temperature': 'paper: none named',
    'sampling.guidance_representation': 'paper',
    'sampling.guidance_pixels': 'paper',
    'sampling.guidance_text': 'paper: one scale for both conditions',
    'sampling.guidance_interval': 'paper: none named',
    'log.samples': 'one grid',
    'log.samples_every': 'drawing would hold up the pod: evaluate kept checkpoints beside it',
    'checkpoint.keep': 'one to resume from, and one more should that be damaged',
    'evaluation.samples': 'chance is 0.5 % of 200; once, at the end',
}


MODELS = {'30B-A3B': sparse_30b, '1.7B': dense_1b7, '0.6B': dense_0b6, '0.3B': dense_0b3}


def get_config(size: str = '30B-A3B') -> ConfigDict:
    """`base` at the scale of the paper; the stages change the rest. `KEPT` tells what stays."""
    config = base.get_config()
    config.compute_dtype = 'bfloat16'
    config.data.sources = 'folder:/path/to/pictures'
    config.data.label_prob = 1.0  # captions as they are: millions bring their own wordings
    # A picture takes some milliseconds to read, and a host of a pod draws hundreds a step.
    config.data.update(threads=16, prefetch=16)
    config.tokenizer.vocab_size = 151_936  # Qwen3's
    model = config.model
    model.attention.update(block_q=256, block_k=128)  # less of a tile is unseen than at 512
    model.backbone.update(head_dim=128, rope_theta=1e6, remat='gate')
    model.backbone.rope_sections = (32, 16, 16)
    config.data.batch_size = 8  # one a chip of one host
    choose('configs/paper:size', size, MODELS)(config)
    model.denoiser.sinusoids = True  # as JiT and BAGEL; Qwen3's theta hardly turns between patches
    model.representation.alignment_layer = model.backbone.layers // 3  # of alignment
    model.representation.codebook_size = 16_384
    model.representation.position_grid = 32  # 1,024 px
    model.representation.quantizer.momentum = 0.9999
    config.optimizer.update(
        learning_rate=5e-5, warmup_steps=500
    )  # paper: its warm-up's length not given
    # Paper: 0.9999. An even average of all steps until there are 10,000 of them.
    config.ema.update(decay=0.9999, encoder_decay=0.9999, warmup_offset=2.0)
    config.flow.base_pixels = 256 * 256
    config.sampling.top_k = 1000  # paper: top-k, its k not given; LlamaGen's with as many codes
    config.sampling.max_answer_tokens = 128  # a caption of the data, not a name
    config.log.every = 20
    # A checkpoint of 30B-A3B is 1.4 TB: beside the newest two, each 10,000 steps, as stages end.
    config.checkpoint.update(every=500, keep=2, keep_period=10_000)
    return config


def row(config: ConfigDict, **tokens: int) -> None:
    """Capacities of a row of 32,768 tokens, a quarter of it for the dense models."""
    cut = 1 if config.model.backbone.ffn == 'moe' else 4
    config.data.capacity.update({name: count // cut for name, count in tokens.items()})
