"""Tiny random models of transformers, with every parameter away from its initial value, and our
configs for them. Tests that import this are skipped without torch and transformers.
"""

import jax
import pytest
from shrink import shrink

from configs import base
from rf_jax.interop import pretrained
from rf_jax.runtime import mesh
from rf_jax.training import initial_weights, jitted

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

VOCABULARY = 160
TEXT = {
    'vocab_size': VOCABULARY,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 32,  # heads x head_dim is not the width
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e6},
    'attn_implementation': 'eager',
}
GROUPS = ((r'^backbone/layers/(representation|pixels)', 'backbone/layers/understanding'),)


def _perturbed(model, seed: int):
    """Norms and layer scales about 1, biases about 0, matrices that keep the scale: errors in any
    of them show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            about = float(('norm' in name and 'weight' in name) or 'lambda' in name)
            scale = 0.3 if value.ndim == 1 else 0.5 * value[0].numel() ** -0.5
            value.copy_(about + scale * noise)
    return model.eval()


def qwen3(tied: bool = False, seed: int = 0, **changes):
    config = transformers.Qwen3Config(
        **(TEXT | {'num_hidden_layers': 3, 'tie_word_embeddings': tied} | changes)
    )
    return _perturbed(transformers.Qwen3ForCausalLM(config), seed)


def qwen3_moe(seed: int = 1, **changes):
    sparse = {'num_hidden_layers': 2, 'moe_intermediate_size': 48, 'num_experts': 8}
    sparse |= {'num_experts_per_tok': 2, 'norm_topk_prob': True, 'tie_word_embeddings': False}
    config = transformers.Qwen3MoeConfig(**(TEXT | sparse | changes))
    return _perturbed(transformers.Qwen3MoeForCausalLM(config), seed)


def dinov3(gated: bool = False, seed: int = 2, **changes):
    config = transformers.DINOv3ViTConfig(
        **{
            'hidden_size': 64,
            'intermediate_size': 96,
            'num_hidden_layers': 2,
            'num_attention_heads': 4,
            'num_register_tokens': 4,
            'use_gated_mlp': gated,
            'hidden_act': 'silu' if gated else 'gelu',
            'attn_implementation': 'eager',
            **changes,
        }
    )
    return _perturbed(transformers.DINOv3ViTModel(config), seed)


def save(model, folder, **options):
    """The folder, as `save_pretrained` writes it."""
    model.save_pretrained(folder, **options)
    return folder


def config_of(*folders, **changes):
    """A tiny config that starts from these folders alone."""
    config = shrink(base.get_config())
    for folder in folders:
        config.update_from_flattened_dict(pretrained.config_fields(folder))
    config.model.backbone.rope_sections = (config.model.backbone.head_dim // 4,) + (
        config.model.backbone.head_dim // 8,
    ) * 2
    config.initialise_from = ','.join(f'hf:{folder}' for folder in folders)
    config.initialise_as = GROUPS
    config.update_from_flattened_dict(changes)
    return config


def loaded(config, devices: int = 1, vocabulary: int = VOCABULARY):
    """(programs, state at step 0) of a config, without its data."""
    initial_weights.check(config)
    mesh_ = mesh.make_mesh(config.mesh, jax.devices()[:devices])
    run = jitted.build(config, vocabulary, mesh_)
    return run, initial_weights.from_sources(run)[0]
