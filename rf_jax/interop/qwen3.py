"""Qwen3, dense and with routed experts: the backbone, its understanding group, and text.

Names of Qwen3ForCausalLM and Qwen3MoeForCausalLM of transformers. The groups `representation` and
`pixels` become copies of `understanding` by `initialise_as`.
"""

from collections.abc import Set
from typing import Any

from rf_jax.interop.family import Config, Family, other_than
from rf_jax.interop.table import TRANSPOSED, Layout, Row

EMBEDDING, HEAD = 'model.embed_tokens.weight', 'lm_head.weight'
_LAYER, _OURS = 'model.layers.{layer}', 'backbone/layers'
_GROUP = f'{_OURS}/understanding'
_EXPERT = f'{_LAYER}.mlp.experts.{{expert}}'


def _linear(theirs: str, out: str, into: str, ours: str) -> Row:
    return Row(f'{_LAYER}.{theirs}.weight', (out, into), f'{_OURS}/{ours}/kernel', TRANSPOSED)


SHARED = (
    Row(EMBEDDING, ('vocabulary', 'width'), 'text_embed/table'),
    Row(f'{_LAYER}.input_layernorm.weight', ('width',), f'{_OURS}/attention/norm/scale'),
    _linear('self_attn.q_proj', 'queries', 'width', 'attention/query'),
    _linear('self_attn.k_proj', 'keys', 'width', 'attention/key'),
    _linear('self_attn.v_proj', 'keys', 'width', 'attention/value'),
    Row(f'{_LAYER}.self_attn.q_norm.weight', ('head',), f'{_OURS}/attention/query_norm/scale'),
    Row(f'{_LAYER}.self_attn.k_norm.weight', ('head',), f'{_OURS}/attention/key_norm/scale'),
    _linear('self_attn.o_proj', 'width', 'queries', 'output'),
    Row(f'{_LAYER}.post_attention_layernorm.weight', ('width',), f'{_OURS}/ffn_norm/scale'),
    Row('model.norm.weight', ('width',), 'backbone/norm/scale'),
)
DENSE = (
    _linear('mlp.gate_proj', 'feedforward', 'width', 'understanding/ffn/gate'),
    _linear('mlp.up_proj', 'feedforward', 'width', 'understanding/ffn/up'),
    _linear('mlp.down_proj', 'width', 'feedforward', 'understanding/ffn/down'),
)
ROUTER = (Row(f'{_LAYER}.mlp.gate.weight', ('expert', 'width'), f'{_GROUP}/router', TRANSPOSED),)
EXPERTS = (
    Row(f'{_EXPERT}.gate_proj.weight', ('feedforward', 'width'), f'{_GROUP}/gate', TRANSPOSED),
    Row(f'{_EXPERT}.up_proj.weight', ('feedforward', 'width'), f'{_GROUP}/up', TRANSPOSED),
    Row(f'{_EXPERT}.down_proj.weight', ('width', 'feedforward'), f'{_GROUP}/down', TRANSPOSED),
)
# The experts of a layer in one tensor, as transformers 5 holds them in memory: only read.
_FUSED = f'{_LAYER}.mlp.experts.gate_up_proj'
_BOTH = ('expert', 'gate_and_up', 'width')
_GATE = Layout(lambda tensor: tensor[:, : tensor.shape[1] // 2].swapaxes(-1, -2))
_UP = Layout(lambda tensor: tensor[:, tensor.shape[1] // 2 :].swapaxes(-1, -2))
FUSED = (
    Row(_FUSED, _BOTH, f'{_GROUP}/gate', _GATE),
    Row(_FUSED, _BOTH, f'{_GROUP}/up', _UP),
    Row(f'{_LAYER}.mlp.experts.down_proj', ('expert', 'width', 'feedforward'), f'{_GROUP}/down',
        TRANSPOSED),
)  # fmt: skip


def _head(c: Config, names: Set[str]) -> tuple[Row, ...]:
    """A tied model may lack the head: ours then starts as the embedding, and trains by itself."""
    theirs = EMBEDDING if c.get('tie_word_embeddings') and HEAD not in names else HEAD
    return (Row(theirs, ('vocabulary', 'width'), 'text_head/kernel', TRANSPOSED),)


def _tied(c: Config, names: Set[str]) -> list[tuple[str, str]]:
    return [(EMBEDDING, HEAD)] if c.get('tie_word_embeddings') and HEAD in names else []


def _sizes(c: Config) -> dict[str, int]:
    return {
        'vocabulary': c['vocab_size'],
        'width': c['hidden_size'],
        'layer': c['num_hidden_layers'],
        'head': c['head_dim'],
        'queries': c['num_attention_heads'] * c['head_dim'],
        'keys': c['num_key_value_heads'] * c['head_dim'],
        'feedforward': c['intermediate_size'],
    }


def _expert_sizes(c: Config) -> dict[str, int]:
    width = c['moe_intermediate_size']
    experts = {'expert': _experts(c), 'feedforward': width, 'gate_and_up': 2 * width}
    return _sizes(c) | experts


def _experts(c: Config) -> int:
    return c['num_local_experts'] if 'num_local_experts' in c else c['num_experts']


def _rope(c: Config) -> dict[str, Any]:
    """Type and theta: transformers 5 writes `rope_parameters`, older files two fields."""
    if c.get('rope_parameters'):
        return c['rope_parameters']
    return {'rope_theta': c['rope_theta']} | (c.get('rope_scaling') or {})


def _fields(c: Config) -> dict[str, Any]:
    return {
        'tokenizer.vocab_size': c['vocab_size'],
        'model.backbone.layers': c['num_hidden_layers'],
        'model.backbone.width': c['hidden_size'],
        'model.backbone.heads': c['num_attention_heads'],
        'model.backbone.kv_heads': c['num_key_value_heads'],
        'model.backbone.head_dim': c['head_dim'],
        'model.backbone.rope_theta': float(_rope(c)['rope_theta']),
        'model.backbone.norm_eps': c['rms_norm_eps'],
    }


def _dense_fields(c: Config) -> dict[str, Any]:
    own = {'ffn': 'dense', 'feedforward': c['intermediate_size']}
    return _fields(c) | {f'model.backbone.{name}': value for name, value in own.items()}


def _expert_fields(c: Config) -> dict[str, Any]:
    return _fields(c) | {
        'model.backbone.ffn': 'moe',
        'model.backbone.moe.num_experts': _experts(c),
        'model.backbone.moe.top_k': c['num_experts_per_tok'],
        'model.backbone.moe.feedforward': c['moe_intermediate_size'],
    }


def _refused(c: Config) -> list[str]:
    rope = _rope(c)
    kind = rope.get('rope_type', rope.get('type', 'default'))
    found = other_than(
        c,
        hidden_act='silu',
        attention_bias=False,
        use_sliding_window=False,
        quantization_config=None,  # such as those of Qwen3-0.6B-FP8
    )
    return found + ([] if kind == 'default' else [
        f"config.json: rope_type={kind!r} is not supported, only 'default'"
    ])  # fmt: skip


def _refused_experts(c: Config) -> list[str]:
    # The default of the class is False: a file without the field does not renormalise.
    c = {'norm_topk_prob': False} | dict(c)
    c['mlp_only_layers'] = c.get('mlp_only_layers') or []
    return _refused(c) + other_than(
        c, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[]
    )


def _describe(config, vocabulary: int) -> dict[str, Any]:
    c = config.model.backbone
    return {
        'architectures': ['Qwen3ForCausalLM'],
        'model_type': 'qwen3',
        'vocab_size': vocabulary,
        'hidden_size': c.width,
        'intermediate_size': c.feedforward,
        'num_hidden_layers': c.layers,
        'num_attention_heads': c.heads,
        'num_key_value_heads': c.kv_heads,
        'head_dim': c.head_dim,
        'rms_norm_eps': c.norm_eps,
        'rope_theta': c.rope_theta,
        'rope_scaling': None,
        'hidden_act': 'silu',
        'attention_bias': False,
        'use_sliding_window': False,
        'tie_word_embeddings': False,
        'torch_dtype': 'float32',
    }


def _describe_experts(config, vocabulary: int) -> dict[str, Any]:
    moe = config.model.backbone.moe
    return _describe(config, vocabulary) | {
        'architectures': ['Qwen3MoeForCausalLM'],
        'model_type': 'qwen3_moe',
        'num_experts': moe.num_experts,
        'num_experts_per_tok': moe.top_k,
        'moe_intermediate_size': moe.feedforward,
        'norm_topk_prob': True,
        'decoder_sparse_step': 1,
        'mlp_only_layers': [],
    }


dense = Family(
    sizes=_sizes,
    rows=lambda c, names: (*SHARED, *_head(c, names), *DENSE),
    fields=_dense_fields,
    refused=_refused,
    describe=_describe,
    same=_tied,
)
sparse = Family(
    sizes=_expert_sizes,
    rows=lambda c, names: (
        *(*SHARED, *_head(c, names), *ROUTER),
        *(FUSED if _FUSED.format(layer=0) in names else EXPERTS),
    ),
    fields=_expert_fields,
    refused=_refused_experts,
    describe=_describe_experts,
    same=_tied,
)
