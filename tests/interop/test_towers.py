"""SigLIP2 and Wan 2.1's VAE from their folders: every tensor and every parameter of ours, once."""

import json
import math

import jax
import numpy as np
import pytest
from shrink import shrink
from table_params import params_of

from configs import base
from rf_jax.interop import pretrained, siglip2, table, wan, writing
from rf_jax.interop.pretrained import FAMILIES, Pretrained
from rf_jax.models import unified
from rf_jax.runtime.errors import UserError
from rf_jax.training.state import example_row

VISION = {
    'hidden_size': 48, 'intermediate_size': 52, 'num_hidden_layers': 2, 'num_attention_heads': 2,
    'num_patches': 64, 'hidden_act': 'gelu_pytorch_tanh',
}  # fmt: skip
SIGLIP2 = {'model_type': 'siglip2', 'vision_config': VISION, 'dtype': 'float32'}
WAN = {
    '_class_name': 'AutoencoderKLWan', 'base_dim': 4, 'z_dim': 16, 'dim_mult': [1, 2],
    'num_res_blocks': 1, 'attn_scales': [], 'latents_mean': wan.MEAN.tolist(),
    'latents_std': wan.STD.tolist(),
}  # fmt: skip
UNUSED = {
    'siglip2': ('vision_model.head.probe', 'text_model.final_layer_norm.weight', 'logit_scale'),
    'AutoencoderKLWan': ('encoder.down_blocks.5.time_conv.weight',),
}
FILES = {'siglip2': 'model.safetensors', 'AutoencoderKLWan': 'diffusion_pytorch_model.safetensors'}


def kind_of(config):
    return config.get('model_type', config.get('_class_name'))


def write(folder, config, change=lambda tensors: tensors):
    """A folder of random tensors as the family's own library lays it."""
    family, rng = FAMILIES[kind_of(config)], np.random.default_rng(0)
    sizes = family.sizes(config)
    tensors = {
        name: rng.normal(size=row.shape(sizes)).astype(np.float32)
        for row in family.rows(config, set())
        for _, name in row.names(sizes)
    }
    tensors |= dict.fromkeys(UNUSED[kind_of(config)], np.zeros(3, np.float32))
    tensors = change(tensors)
    specs = [writing.Spec(name, a.shape, a.dtype) for name, a in tensors.items()]
    folder.mkdir(exist_ok=True)
    writing.write(folder, specs, tensors.values())
    (folder / 'model.safetensors').rename(folder / FILES[kind_of(config)])
    (folder / 'config.json').write_text(json.dumps(config))
    return tensors


@pytest.mark.parametrize(('config', 'part'), [(SIGLIP2, 'encoder'), (WAN, 'autoencoder')])
def test_a_folder_fills_every_parameter_of_its_part(tmp_path, config, part):
    """Of a model with the fields that its config.json asks for."""
    tensors = write(tmp_path / 'weights', config)
    folder = Pretrained(tmp_path / 'weights')
    ours = shrink(base.get_config())
    ours.update_from_flattened_dict(pretrained.config_fields(tmp_path / 'weights'))
    folder.check(ours)
    model, batch = unified.build(ours, 300), example_row(768)
    z = np.zeros((1, 4, model.flow_channels), np.float32)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), batch, batch['input_group'], z, z[..., 0]
    )['params']
    leaves = jax.tree_util.tree_leaves_with_path({part: shapes[part]})
    wanted = {jax.tree_util.keystr(path, simple=True, separator='/'): a for path, a in leaves}
    assert {path: leaf.shape for path, leaf in folder.leaves.items()} == {
        path: a.shape for path, a in wanted.items()
    }
    read = params_of(folder.family, config, tensors)
    for path, leaf in folder.leaves.items():
        value = read
        for name in path.split('/'):
            value = value[name]
        whole = (slice(None),) * len(leaf.shape)
        np.testing.assert_array_equal(folder.read(path, whole), value)


def test_wan_at_its_real_size():
    """194 tensors and 126,892,531 parameters, of which eight over time alone are not used."""
    config = WAN | {'base_dim': 96, 'dim_mult': [1, 2, 4, 4], 'num_res_blocks': 2}
    rows = wan.vae.rows(config, set())
    over_time = 192 * 192 * 3 + 192 + 384 * 384 * 3 + 384 + 2 * (384 * 768 * 3 + 768)
    assert len(rows) == len({row.theirs for row in rows}) == 194 - 8
    assert sum(math.prod(row.sizes) for row in rows) == 126_892_531 - over_time
    assert wan.vae.fields(config)['model.wan.dim_mult'] == (1, 2, 4, 4)


def test_a_tower_saved_alone_has_no_prefix():
    config = VISION | {'model_type': 'siglip2_vision_model'}
    alone, whole = (siglip2.naflex.rows(c, set()) for c in (config, SIGLIP2))
    assert [f'vision_model.{row.theirs}' for row in alone] == [row.theirs for row in whole]
    sizes = siglip2.naflex.sizes(config)
    assert table.leaves(alone, sizes).keys() == table.leaves(whole, sizes).keys()


def without(name):
    return lambda tensors: {key: a for key, a in tensors.items() if key != name}


WRONG = {
    'dropped': (SIGLIP2, {}, without('vision_model.post_layernorm.bias'),
                r'post_layernorm\.bias .* is missing'),
    'another part': (SIGLIP2, {}, lambda t: t | {'decoder.x': np.zeros(2, np.float32)},
                     'decoder.x .* is not known'),
    'grid': (SIGLIP2, {'vision_config': VISION | {'num_patches': 60}}, None, 'num_patches=60'),
    'activation': (SIGLIP2, {'vision_config': VISION | {'hidden_act': 'gelu'}}, None,
                   "hidden_act='gelu'"),
    'latents': (WAN, {'latents_mean': [0.0] * 16}, None, 'latents_mean'),
    'Wan 2.2': (WAN, {'is_residual': True}, None, 'is_residual=True'),
    'a file of diffusers': (WAN, {}, without('quant_conv.bias'), r'quant_conv\.bias .* is missing'),
}  # fmt: skip


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_refused(tmp_path, name):
    config, changes, change, message = WRONG[name]
    write(tmp_path, config, change or (lambda tensors: tensors))
    (tmp_path / 'config.json').write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        Pretrained(tmp_path)


def test_a_folder_of_another_size_is_refused(tmp_path):
    write(tmp_path, WAN)
    ours = shrink(base.get_config())
    ours.model.space = 'wan'
    with pytest.raises(UserError, match=r'model\.wan\.base_dim=96 must be 4'):
        Pretrained(tmp_path).check(ours)
