"""SigLIP2 NaFlex: the vision tower, as encoder.

Names of Siglip2Model of transformers, as its files have them, and of Siglip2VisionModel alone,
which has no prefix from transformers 5 on. It is exported alone: the text tower is not ours.
"""

import math
from collections.abc import Set
from typing import Any

from rf_jax.interop.family import Config, Family, other_than, processor
from rf_jax.interop.table import Row, layer_norm, linear

_LAYER, _OURS = 'encoder.layers.{layer}', 'encoder/layers'
_PREFIX = 'vision_model.'
ALONE = 'siglip2_vision_model'
# Published files have what differs from these values alone.
DEFAULTS = {
    'hidden_size': 768, 'intermediate_size': 3072, 'num_hidden_layers': 12,
    'num_attention_heads': 12, 'patch_size': 16, 'num_patches': 256, 'layer_norm_eps': 1e-6,
}  # fmt: skip


def _tower(c: Config) -> Config:
    """The config of the vision tower, of the whole model's or its own."""
    return DEFAULTS | dict(c.get('vision_config', c))


ROWS = (
    *linear('embeddings.patch_embedding', 'width', 'values', 'encoder/patch_embed'),
    Row('embeddings.position_embedding.weight', ('places', 'width'), 'encoder/position/table'),
    *layer_norm(f'{_LAYER}.layer_norm1', f'{_OURS}/attention_norm'),
    *linear(f'{_LAYER}.self_attn.q_proj', 'width', 'width', f'{_OURS}/query'),
    *linear(f'{_LAYER}.self_attn.k_proj', 'width', 'width', f'{_OURS}/key'),
    *linear(f'{_LAYER}.self_attn.v_proj', 'width', 'width', f'{_OURS}/value'),
    *linear(f'{_LAYER}.self_attn.out_proj', 'width', 'width', f'{_OURS}/output'),
    *layer_norm(f'{_LAYER}.layer_norm2', f'{_OURS}/ffn_norm'),
    *linear(f'{_LAYER}.mlp.fc1', 'feedforward', 'width', f'{_OURS}/ffn/up'),
    *linear(f'{_LAYER}.mlp.fc2', 'width', 'feedforward', f'{_OURS}/ffn/down'),
    *layer_norm('post_layernorm', 'encoder/norm'),
)


def _rows(c: Config, names: Set[str]) -> tuple[Row, ...]:
    whole = 'vision_config' in c or any(name.startswith(_PREFIX) for name in names)
    prefix = _PREFIX if whole else ''
    return tuple(row._replace(theirs=prefix + row.theirs) for row in ROWS)


def _sizes(c: Config) -> dict[str, int]:
    c = _tower(c)
    return {
        'width': c['hidden_size'],
        'layer': c['num_hidden_layers'],
        'feedforward': c['intermediate_size'],
        'places': c['num_patches'],
        'values': 3 * c['patch_size'] ** 2,
    }


def _fields(c: Config) -> dict[str, Any]:
    mean, std = (c.get(name, (0.5, 0.5, 0.5)) for name in ('image_mean', 'image_std'))
    c = _tower(c)
    return {
        'data.patch_size': c['patch_size'],
        'model.encoder.kind': 'siglip2',
        'model.encoder.layers': c['num_hidden_layers'],
        'model.encoder.width': c['hidden_size'],
        'model.encoder.heads': c['num_attention_heads'],
        'model.encoder.feedforward': c['intermediate_size'],
        'model.encoder.norm_eps': c['layer_norm_eps'],
        'model.encoder.position_grid': math.isqrt(c['num_patches']),
        'model.encoder.pixel_mean': tuple(mean),
        'model.encoder.pixel_std': tuple(std),
    }


def _refused(c: Config) -> list[str]:
    c = _tower(c)
    faults = other_than(c, num_channels=3, hidden_act='gelu_pytorch_tanh')
    count = c['num_patches']
    if math.isqrt(count) ** 2 != count:
        faults.append(f'config.json: num_patches={count} is not the square of a whole number')
    return faults


def _describe(config, vocabulary: int) -> dict[str, Any]:
    del vocabulary
    c = config.model.encoder
    return {
        'architectures': ['Siglip2VisionModel'],
        'model_type': ALONE,
        'hidden_size': c.width,
        'intermediate_size': c.feedforward,
        'num_hidden_layers': c.layers,
        'num_attention_heads': c.heads,
        'num_channels': 3,
        'num_patches': c.position_grid**2,
        'patch_size': config.data.patch_size,
        'hidden_act': 'gelu_pytorch_tanh',
        'layer_norm_eps': c.norm_eps,
        'vision_use_head': False,
        'torch_dtype': 'float32',
    }


def _describe_images(config) -> dict[str, Any]:
    side = max(size for size, _ in config.data.sizes) // config.data.patch_size
    return processor(
        config, 'Siglip2ImageProcessor', patch_size=config.data.patch_size, max_num_patches=side**2
    )


def _part(c: Config) -> tuple[Config, str]:
    if 'vision_config' not in c:
        return c, ''
    dtype = {name: c[name] for name in ('dtype', 'torch_dtype') if name in c}
    kind = {'architectures': ['Siglip2VisionModel'], 'model_type': ALONE}
    return dtype | dict(c['vision_config']) | kind, _PREFIX


naflex = Family(
    sizes=_sizes,
    rows=_rows,
    fields=_fields,
    refused=_refused,
    describe=_describe,
    describe_images=_describe_images,
    part=_part,
    # The pooled vector and the text tower.
    unused=(r'^(vision_model\.)?head\.', r'^text_model\.', r'^logit_(scale|bias)$'),
)
