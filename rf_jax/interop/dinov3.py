"""DINOv3's vision transformers, of all sizes: the encoder.

Names of DINOv3ViTModel of transformers, as its files have them.
"""

from collections.abc import Set
from typing import Any

from rf_jax.interop.family import Config, Family, other_than, processor
from rf_jax.interop.table import PATCHES, TOKENS, Row, layer_norm, linear

_LAYER, _OURS = 'layer.{layer}', 'encoder/layers'
_EMBEDDINGS = 'embeddings'
# Of all published weights but those for satellite images, where preprocessor_config.json is absent.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _linear(theirs: str, out: str, into: str, ours: str, bias: bool = True) -> tuple[Row, ...]:
    return linear(f'{_LAYER}.{theirs}', out, into, f'{_OURS}/{ours}', bias)


SHARED = (
    Row(f'{_EMBEDDINGS}.cls_token', (1, 1, 'width'), 'encoder/class_and_registers', TOKENS),
    Row(f'{_EMBEDDINGS}.register_tokens', (1, 'registers', 'width'),
        'encoder/class_and_registers', TOKENS),
    Row(f'{_EMBEDDINGS}.patch_embeddings.weight', ('width', 3, 'patch', 'patch'),
        'encoder/patch_embed/kernel', PATCHES),
    Row(f'{_EMBEDDINGS}.patch_embeddings.bias', ('width',), 'encoder/patch_embed/bias'),
    *layer_norm(f'{_LAYER}.norm1', f'{_OURS}/attention_norm'),
    *_linear('attention.k_proj', 'width', 'width', 'key', bias=False),
    *_linear('attention.o_proj', 'width', 'width', 'output'),
    Row(f'{_LAYER}.layer_scale1.lambda1', ('width',), f'{_OURS}/attention_scale'),
    *layer_norm(f'{_LAYER}.norm2', f'{_OURS}/ffn_norm'),
    *_linear('mlp.up_proj', 'feedforward', 'width', 'ffn/up'),
    *_linear('mlp.down_proj', 'width', 'feedforward', 'ffn/down'),
    Row(f'{_LAYER}.layer_scale2.lambda1', ('width',), f'{_OURS}/ffn_scale'),
    *layer_norm('norm', 'encoder/norm'),
)  # fmt: skip
GATE = _linear('mlp.gate_proj', 'feedforward', 'width', 'ffn/gate')


def _rows(c: Config, names: Set[str]) -> tuple[Row, ...]:
    del names
    bias = c.get('query_bias', True)
    return (
        *SHARED,
        *_linear('attention.q_proj', 'width', 'width', 'query', bias),
        *_linear('attention.v_proj', 'width', 'width', 'value', bias),
        *(GATE if c['use_gated_mlp'] else ()),
    )


def _sizes(c: Config) -> dict[str, int]:
    return {
        'width': c['hidden_size'],
        'layer': c['num_hidden_layers'],
        'registers': c['num_register_tokens'],
        'patch': c['patch_size'],
        'feedforward': c['intermediate_size'],
    }


def _fields(c: Config) -> dict[str, Any]:
    return {
        'data.patch_size': c['patch_size'],
        'model.encoder.kind': 'dinov3',
        'model.encoder.layers': c['num_hidden_layers'],
        'model.encoder.width': c['hidden_size'],
        'model.encoder.heads': c['num_attention_heads'],
        'model.encoder.feedforward': c['intermediate_size'],
        'model.encoder.gated': c['use_gated_mlp'],
        'model.encoder.registers': c['num_register_tokens'],
        'model.encoder.rope_theta': float(c['rope_theta']),
        'model.encoder.norm_eps': c['layer_norm_eps'],
        'model.encoder.query_value_bias': c.get('query_bias', True),
        'model.encoder.pixel_mean': tuple(c.get('image_mean', MEAN)),
        'model.encoder.pixel_std': tuple(c.get('image_std', STD)),
    }


def _refused(c: Config) -> list[str]:
    bias = c.get('query_bias', True)
    activation = 'silu' if c['use_gated_mlp'] else 'gelu'
    return other_than(c, key_bias=False, value_bias=bias, proj_bias=True, mlp_bias=True,
                      num_channels=3, hidden_act=activation)  # fmt: skip


def _describe(config, vocabulary: int) -> dict[str, Any]:
    del vocabulary
    c = config.model.encoder
    bias = c.get('query_value_bias', True)  # older runs have no field
    return {
        'architectures': ['DINOv3ViTModel'],
        'model_type': 'dinov3_vit',
        'hidden_size': c.width,
        'intermediate_size': c.feedforward,
        'num_hidden_layers': c.layers,
        'num_attention_heads': c.heads,
        'num_register_tokens': c.registers,
        'patch_size': config.data.patch_size,
        'rope_theta': c.rope_theta,
        'layer_norm_eps': c.norm_eps,
        'use_gated_mlp': c.gated,
        'hidden_act': 'silu' if c.gated else 'gelu',
        'query_bias': bias,
        'value_bias': bias,
        'key_bias': False,
        'torch_dtype': 'float32',
    }


def _describe_images(config) -> dict[str, Any]:
    side = max(size for size, _ in config.data.sizes)
    return processor(config, 'DINOv3ViTImageProcessorFast', size={'height': side, 'width': side})


vit = Family(
    sizes=_sizes,
    rows=_rows,
    fields=_fields,
    refused=_refused,
    describe=_describe,
    describe_images=_describe_images,
    unused=(r'^embeddings\.mask_token$',),  # of training with masked patches
)
