"""Config fields renamed since an earlier version, so that errors can name the new field."""

import os
from collections.abc import Mapping

from rf_jax.runtime.errors import UserError

RENAMED = {
    'data.rows': 'data.batch_size',
    'data.patch': 'data.patch_size',
    'data.max_text': 'data.max_text_tokens',
    'data.caption_label': 'data.label_prob',
    'data.question': 'data.question_prob',
    'data.drop_text': 'data.text_dropout',
    'data.drop_representation': 'data.representation_dropout',
    'data.drop_both': 'data.joint_dropout',
    'data.drop_keeps_positions': 'data.dropout_keeps_positions',
    'data.capacity.vision_pictures': 'data.capacity.vision_images',
    'data.capacity.pixel_pictures': 'data.capacity.pixel_images',
    'tokenizer.vocabulary': 'tokenizer.vocab_size',
    'model.backbone.experts': 'model.backbone.ffn',
    'model.backbone.routed.count': 'model.backbone.moe.num_experts',
    'model.backbone.routed.top_k': 'model.backbone.moe.top_k',
    'model.backbone.routed.feedforward': 'model.backbone.moe.feedforward',
    'model.backbone.routed.pool': 'model.backbone.moe.pool',
    'model.backbone.routed.product': 'model.backbone.moe.grouped_matmul',
    'model.backbone.routed.capacity_factor': 'model.backbone.moe.capacity_factor',
    'model.attention.form': 'model.attention.implementation',
    'model.representation.codes': 'model.representation.codebook_size',
    'model.representation.layer': 'model.representation.alignment_layer',
    'model.representation.frame': 'model.representation.position_grid',
    'model.representation.quantizer.iterations': (
        'model.representation.quantizer.sinkhorn_iterations'
    ),
    'model.denoiser.time_features': 'model.denoiser.time_embed_dim',
    'flow.floor': 'flow.t_eps',
    'optimizer.warmup': 'optimizer.warmup_steps',
    'optimizer.clip': 'optimizer.grad_clip_norm',
    'optimizer.rates': 'optimizer.lr_multipliers',
    'optimizer.accumulate': 'optimizer.grad_accum_steps',
    'optimizer.max_skips': 'optimizer.max_skipped_steps',
    'sampling.interval': 'sampling.guidance_interval',
    'sampling.max_answer': 'sampling.max_answer_tokens',
}


def new_name(field: str) -> str:
    """The new name of a dotted field, or of a leaf name if only one matches; else ''."""
    if field in RENAMED:
        return RENAMED[field]
    matches = [new for old, new in RENAMED.items() if old.rpartition('.')[2] == field]
    return matches[0] if len(matches) == 1 else ''


def check(config: Mapping, path: str | os.PathLike) -> None:
    """Raises UserError, naming all of them, if a config loaded from `path` has renamed fields."""
    renamed = [(old, new) for old, new in RENAMED.items() if _holds(config, old.split('.'))]
    if renamed:
        names = ', '.join(f'{old} is now {new}' for old, new in renamed)
        raise UserError(
            f'{path} was written by an earlier version of rf_jax and has fields that were '
            f'renamed since. Rename them in that file: {names}'
        )


def _holds(config: Mapping, names: list[str]) -> bool:
    for name in names:
        if not hasattr(config, 'keys') or name not in config:
            return False
        config = config[name]
    return True
