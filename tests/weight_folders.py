"""Folders of random weights with the names and shapes of published ones, written without torch."""

import json

import ml_dtypes
import numpy as np

from rf_jax.interop import pretrained, writing

QWEN3 = {
    'model_type': 'qwen3', 'vocab_size': 160, 'hidden_size': 64, 'intermediate_size': 96,
    'num_hidden_layers': 3, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 32,
    'rms_norm_eps': 1e-6, 'hidden_act': 'silu', 'attention_bias': False,
    'use_sliding_window': False, 'tie_word_embeddings': False, 'torch_dtype': 'bfloat16',
    'rope_theta': 1e6, 'rope_scaling': None,
}  # fmt: skip
QWEN3_MOE = QWEN3 | {
    'model_type': 'qwen3_moe', 'num_experts': 8, 'num_experts_per_tok': 2,
    'moe_intermediate_size': 48, 'norm_topk_prob': True, 'decoder_sparse_step': 1,
    'mlp_only_layers': [],
}  # fmt: skip
DINOV3 = {
    'model_type': 'dinov3_vit', 'hidden_size': 64, 'intermediate_size': 96,
    'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_register_tokens': 4, 'patch_size': 16,
    'rope_theta': 100.0, 'layer_norm_eps': 1e-5, 'use_gated_mlp': False, 'hidden_act': 'gelu',
    'query_bias': True, 'value_bias': True, 'key_bias': False, 'dtype': 'float32',
}  # fmt: skip
DTYPES = {'bfloat16': np.dtype(ml_dtypes.bfloat16), 'float32': np.dtype(np.float32)}


def specs(config):
    """Every tensor of a published checkpoint with this config.json."""
    family = pretrained.FAMILIES[config['model_type']]
    dtype, sizes = DTYPES[config.get('dtype', config.get('torch_dtype'))], family.sizes(config)
    found = [
        writing.Spec(name, row.shape(sizes), dtype)
        for row in family.rows(config, set())
        for _, name in row.names(sizes)
    ]
    if config['model_type'] == 'dinov3_vit':
        found.append(writing.Spec('embeddings.mask_token', (1, 1, sizes['width']), dtype))
    return list({spec.name: spec for spec in found}.values())


def write(folder, config, limit=writing.LIMIT, change=lambda tensors: tensors, seed=0):
    """A folder with random tensors; `change` alters {name: tensor} before they are written."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {s.name: rng.normal(size=s.shape).astype(s.dtype) for s in specs(config)}
    tensors = change(tensors)
    given = [writing.Spec(name, value.shape, value.dtype) for name, value in tensors.items()]
    writing.write(folder, given, tensors.values(), limit)
    (folder / 'config.json').write_text(json.dumps(config))
    return folder
