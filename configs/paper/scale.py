"""The paper's model, and two dense ones of Qwen3's family; the stages of this folder share it."""

from ml_collections import ConfigDict

from configs import base
from rf_jax.runtime.errors import choose


def sparse_30b(config: ConfigDict) -> None:
    """Qwen3-30B-A3B in each of the three groups, and DINOv3 ViT-H+/16 (paper, section 4.1)."""
    model = config.model
    model.backbone.update(layers=48, width=2048, heads=32, kv_heads=4)
    model.backbone.experts = 'routed'
    model.backbone.routed.update(count=128, top_k=8, feedforward=768)
    encoder(model, layers=32, width=1280, heads=20, feedforward=5120, gated=True)
    config.losses.update(balance=1e-3, router_z=1e-4)
    config.data.rows = 512  # one a chip of v5p:8x8x8
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
    model.backbone.remat = 'projections'
    encoder(model, layers=12, width=768, heads=12, feedforward=3072)


def encoder(model: ConfigDict, **changes) -> None:
    """A DINOv3 encoder."""
    model.encoder.update(registers=4, layer_scale=1e-5, remat='attention', **changes)


MODELS = {'30B-A3B': sparse_30b, '1.7B': dense_1b7, '0.6B': dense_0b6}


def get_config(size: str = '30B-A3B') -> ConfigDict:
    """`base` at the scale of the paper; the stages change the rest."""
    config = base.get_config()
    config.compute_dtype = 'bfloat16'
    config.data.sources = 'folder:/path/to/pictures'
    # A picture takes some milliseconds to read, and a host of a pod draws hundreds a step.
    config.data.update(threads=16, prefetch=16)
    config.tokenizer.vocabulary = 151_936  # Qwen3's
    model = config.model
    model.attention.update(block_q=256, block_k=128)  # less of a tile is unseen than at 512
    model.backbone.update(head_dim=128, rope_theta=1e6, remat='attention')
    model.backbone.rope_sections = (32, 16, 16)
    config.data.rows = 8  # one a chip of one host
    choose('configs/paper:size', size, MODELS)(config)
    model.representation.layer = model.backbone.layers // 3  # of alignment
    model.representation.codes = 16_384
    model.representation.frame = 32  # 1,024 px
    model.representation.quantizer.momentum = 0.9999
    config.optimizer.update(learning_rate=5e-5, warmup=500)
    config.ema.update(decay=0.9999, encoder_decay=0.9999)
    config.flow.base_pixels = 256 * 256
    config.log.every = 20
    config.checkpoint.update(every=500, keep=2, keep_period=5000)
    return config


def row(config: ConfigDict, **tokens: int) -> None:
    """Capacities of a row of 32,768 tokens, a quarter of it for the dense models."""
    cut = 1 if config.model.backbone.experts == 'routed' else 4
    config.data.capacity.update({name: count // cut for name, count in tokens.items()})
