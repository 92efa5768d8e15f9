"""Bounds of the numbers and tuples of a config: one table, from field to bounds."""

from collections.abc import Mapping
from typing import Any

from rf_jax.runtime.errors import UserError, require
from rf_jax.training.ranges import Boolean, Bounds, Each, Finite, Pair, Pairs, Text, Whole

COUNT, NATURAL = Whole(1), Whole(0)
POSITIVE, NOT_NEGATIVE, ANY = Finite(0, above=True), Finite(0), Finite()
SHARE = Finite(0, 1)
DECAY = Finite(0, 1, below=True)  # with 1, nothing would ever change
DEVICES = Whole(1, also=(-1,))
PATTERNS = Each(Text())

_TOWER = {  # shared by the encoder and the autoencoder
    'layers': COUNT,
    'width': COUNT,
    'heads': COUNT,
    'feedforward': COUNT,
    'gated': Boolean(),
    'registers': NATURAL,
    'layer_scale': NOT_NEGATIVE,
    'rope_theta': POSITIVE,
    'norm_eps': POSITIVE,
    'unroll': COUNT,
}


def _prefixed(group: str, rows: Mapping[str, Bounds]) -> dict[str, Bounds]:
    return {f'{group}.{name}': bounds for name, bounds in rows.items()}


# Every number and tuple of configs/base.py, except tables of sharding, which check their own.
FIELDS: Mapping[str, Bounds] = {
    'seed': Whole(0, 2**63 - 1),
    'initialise_from_average': Boolean(),
    'initialise_new': PATTERNS,
    'initialise_as': Pairs(Pair(Text(), Text(), 'pairs (regex, replacement)')),
    'steps': COUNT,
    **_prefixed('data', {
        'batch_size': COUNT,
        'tasks.text_to_image': NOT_NEGATIVE,
        'tasks.image_to_text': NOT_NEGATIVE,
        'tasks.text_only': NOT_NEGATIVE,
        'tasks.conversation': NOT_NEGATIVE,
        'tasks.image_to_pixels': NOT_NEGATIVE,
        'tasks.image_to_depth': NOT_NEGATIVE,
        'tasks.image_to_segmentation': NOT_NEGATIVE,
        'tasks.image_to_regions': NOT_NEGATIVE,
        'capacity.text': NATURAL,
        'capacity.vision': NATURAL,
        'capacity.representation': NATURAL,
        'capacity.pixels': NATURAL,
        'capacity.vision_images': NATURAL,
        'capacity.pixel_images': NATURAL,
        'patch_size': COUNT,
        'sizes': Pairs(Pair(
            COUNT, POSITIVE, 'pairs (whole pixels, weight above 0) as in '
            "--config.data.sizes='((64, 0.7), (32, 0.3))'"), least=1),
        'max_text_tokens': Whole(8),  # a question, its answer and the special tokens around them
        'label_prob': SHARE,
        'question_prob': SHARE,
        'text_dropout': SHARE,
        'representation_dropout': SHARE,
        'image_dropout': SHARE,
        'joint_dropout': SHARE,
        'representation_tokens': Boolean(),
        'dropout_keeps_positions': Boolean(),
        'prompt_loss': Boolean(),
        'max_pixels': Whole(1, 2**63 - 1),
        'weights': Pairs(Pair(
            NATURAL, Each(NOT_NEGATIVE), 'pairs (step, weights of at least 0) as in '
            "--config.data.weights='((0, (3, 1)), (10000, (1, 1)))'")),
        'lanes': DEVICES,
        'cache_megabytes': NATURAL,
        'prefetch': NATURAL,
        'threads': NATURAL,
        'workers': NATURAL,
    }),
    'tokenizer.vocab_size': COUNT,
    **_prefixed('model.backbone', {
        'layers': COUNT,
        'width': COUNT,
        'heads': COUNT,
        'kv_heads': COUNT,
        'head_dim': COUNT,
        'feedforward': COUNT,
        'moe.num_experts': COUNT,
        'moe.top_k': COUNT,
        'moe.feedforward': COUNT,
        'moe.capacity_factor': Finite(1),
        'rope_theta': POSITIVE,
        'rope_sections': Each(NATURAL, 3),
        'norm_eps': POSITIVE,
        'unroll': COUNT,
    }),
    'model.vision_gradient_scale': NOT_NEGATIVE,
    'model.attention.block_q': COUNT,
    'model.attention.block_k': COUNT,
    **_prefixed('model.encoder', _TOWER | {
        'query_value_bias': Boolean(),
        'position_grid': COUNT,
        'pixel_mean': Each(SHARE, 3),
        'pixel_std': Each(Finite(0, 1, above=True), 3),
    }),
    **_prefixed('model.autoencoder', _TOWER | {'channels': COUNT}),
    'model.wan.base_dim': COUNT,
    'model.wan.dim_mult': Each(COUNT),
    'model.wan.num_res_blocks': COUNT,
    **_prefixed('model.representation', {
        'pool': COUNT,
        'alignment_layer': COUNT,
        'codebook_size': COUNT,
        'position_grid': COUNT,
        'quantizer.temperature': POSITIVE,
        'quantizer.sinkhorn_iterations': COUNT,
        'quantizer.momentum': SHARE,
        'quantizer.pool_first': Boolean(),
        'quantizer.data_init_steps': Each(NATURAL),
    }),
    'model.denoiser.bottleneck': NATURAL,
    'model.denoiser.time_embed_dim': COUNT,
    'model.denoiser.sinusoids': Boolean(),
    'flow.time_mean': ANY,
    'flow.time_std': POSITIVE,
    'flow.t_eps': Finite(0, 1, above=True),
    'flow.noise_scale': POSITIVE,
    'flow.shift': POSITIVE,
    'flow.base_pixels': COUNT,
    **dict.fromkeys(
        (
            *('losses.text', 'losses.representation', 'losses.flow', 'losses.balance'),
            *('losses.router_z', 'losses.reconstruction', 'losses.kl'),
        ),
        NOT_NEGATIVE,
    ),
    'optimizer.learning_rate': POSITIVE,
    'optimizer.warmup_steps': NATURAL,
    'optimizer.decay_steps': NATURAL,
    'optimizer.beta1': DECAY,
    'optimizer.beta2': DECAY,
    'optimizer.epsilon': POSITIVE,
    'optimizer.weight_decay': NOT_NEGATIVE,
    'optimizer.grad_clip_norm': POSITIVE,
    'optimizer.lr_multipliers': Pairs(Pair(
        Text(), NOT_NEGATIVE, 'pairs (regex, factor of at least 0); as a flag: '
        '--config.optimizer.lr_multipliers="((\'^backbone/\', 4.0),)"')),
    'optimizer.freeze': PATTERNS,
    'optimizer.grad_accum_steps': COUNT,
    'optimizer.max_skipped_steps': NATURAL,
    'lora.rank': NATURAL,
    'lora.alpha': POSITIVE,
    **dict.fromkeys(('lora.targets', 'lora.full'), PATTERNS),
    'ema.decay': DECAY,
    'ema.warmup': Boolean(),
    'ema.warmup_offset': Finite(1, above=True),
    'ema.encoder_decay': DECAY,
    'offload': Each(Text()),
    **_prefixed('mesh', dict.fromkeys(('data', 'fsdp', 'expert', 'tensor', 'context'), DEVICES)),
    'sampling.steps': COUNT,
    'sampling.top_k': NATURAL,
    'sampling.temperature': NOT_NEGATIVE,
    'sampling.guidance_representation': NOT_NEGATIVE,
    'sampling.guidance_pixels': NOT_NEGATIVE,
    'sampling.guidance_text': NOT_NEGATIVE,
    'sampling.guidance_image': NOT_NEGATIVE,
    'sampling.guidance_interval': Pair(SHARE, SHARE, '(first, last) time t, each in [0, 1]'),
    'sampling.max_answer_tokens': COUNT,
    'log.every': COUNT,
    'log.samples_every': NATURAL,
    'log.samples': NATURAL,
    'checkpoint.every': COUNT,
    'checkpoint.keep': COUNT,
    'checkpoint.keep_period': NATURAL,
    'evaluation.samples': NATURAL,
    'validation.every': COUNT,
    'validation.batches': COUNT,
}  # fmt: skip


def check(fields: Mapping[str, Any]) -> None:
    """Raises UserError for the first of {dotted field: value} that is out of bounds; fields that
    are not in the table are ignored.
    """
    for field, value in fields.items():
        if field in FIELDS and value not in FIELDS[field]:
            raise UserError(f'{field}={value!r}: expected {FIELDS[field]}')
    first, last = fields.get('sampling.guidance_interval', (0, 1))
    require(
        first <= last,
        f'sampling.guidance_interval={(first, last)}: the first time is later than the last',
    )
