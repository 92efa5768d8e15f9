"""SigLIP2 alone, encoders of runs that began with random weights, and dtypes that config.json does
not say.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_export import contents, exported, save
from test_towers import SIGLIP2
from test_towers import write as write_tower
from weight_folders import DINOV3, QWEN3, config_of, loaded, write

from rf_jax.training import weight_sources

pytestmark = pytest.mark.slow


def run_of(workdir, *folders):
    """(config, state) of a run that starts from these folders, saved."""
    config = config_of(*folders)
    _, state = loaded(config)
    save(state, config, workdir)
    return config, state


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    return write(tmp_path_factory.mktemp('models') / 'qwen3', QWEN3)


@pytest.mark.parametrize('whole', [True, False])
def test_siglip2_comes_out_bit_for_bit_without_the_text_tower(text, tmp_path, whole):
    """As Siglip2VisionModel, its pooling head included, and goes in again."""

    def vision(tensors):
        return {name: a for name, a in tensors.items() if name.startswith('vision_model.')}

    folder = tmp_path / 'siglip2'
    if whole:
        tensors = write_tower(folder, SIGLIP2)
    else:  # saved alone by transformers 4, with the prefix
        tensors = write_tower(folder, SIGLIP2, vision)
        config = {**SIGLIP2['vision_config'], 'model_type': 'siglip2_vision_model'}
        (folder / 'config.json').write_text(json.dumps(config))
    statistics = {'image_mean': [0.4, 0.5, 0.6], 'image_std': [0.5, 0.5, 0.5]}
    (folder / 'preprocessor_config.json').write_text(json.dumps(statistics))
    _, state = run_of(tmp_path / 'run', text, folder)
    out = exported(tmp_path / 'run', tmp_path / 'out') / 'siglip2_vision_model'
    prefix = 'vision_model.' if whole else ''
    before = {name.removeprefix(prefix): tensor for name, tensor in vision(tensors).items()}
    after = contents(out)
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert after[name][1].tobytes() == tensor.tobytes(), name
    config = config_of(text, out)
    assert config.model.encoder.pixel_mean == (0.4, 0.5, 0.6)
    _, again = loaded(config)
    for a, b in zip(jax.tree.leaves(state.ema['encoder']), jax.tree.leaves(again.ema['encoder']),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('kind', ['dinov3_vit', 'siglip2_vision_model'])
def test_an_encoder_that_began_here_has_a_config_and_a_processor(text, tmp_path, kind):
    if kind == 'dinov3_vit':
        folder = write(tmp_path / 'encoder', DINOV3)
    else:
        folder = tmp_path / 'encoder'
        write_tower(folder, SIGLIP2)
    config, state = run_of(tmp_path / 'other', text, folder)
    config.initialise_from = ''
    config.model.encoder.pixel_mean = (0.1, 0.2, 0.3)
    save(state, config, tmp_path / 'run')
    out = exported(tmp_path / 'run', tmp_path / 'out') / kind
    images = json.loads((out / 'preprocessor_config.json').read_text())
    assert images['image_mean'] == [0.1, 0.2, 0.3] and images['do_normalize']
    assert 'image_mean' not in json.loads((out / 'config.json').read_text())
    back = config_of(text, out).model.encoder
    assert back.to_dict() == config.model.encoder.to_dict()

    transformers = pytest.importorskip('transformers')
    model, info = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not info['unexpected_keys'] and not info['mismatched_keys']
    assert set(info['missing_keys']) <= {'embeddings.mask_token'}  # of masked training
    norm = model.norm if kind == 'dinov3_vit' else model.post_layernorm
    ours = state.ema['encoder']['norm']['scale']
    np.testing.assert_array_equal(norm.weight.detach().numpy(), ours)
    if kind == 'siglip2_vision_model':  # that of DINOv3 needs torchvision
        processor = transformers.AutoImageProcessor.from_pretrained(out)
        assert list(processor.image_mean) == [0.1, 0.2, 0.3]


def test_dtypes_that_config_json_does_not_say_come_back(tmp_path):
    """Each tensor's own."""

    def change(tensors):
        return {name: a.astype(np.float32) if 'norm' in name else a for name, a in tensors.items()}

    text = write(tmp_path / 'qwen3', QWEN3, change=change)
    config = {name: value for name, value in QWEN3.items() if name != 'torch_dtype'}
    (text / 'config.json').write_text(json.dumps(config))
    run_of(tmp_path / 'run', text, write(tmp_path / 'dinov3', DINOV3))
    out = exported(tmp_path / 'run', tmp_path / 'out') / 'qwen3'
    before, after = contents(text), contents(out)
    assert {dtype for dtype, _ in before.values()} == set(map(np.dtype, (np.float32, jnp.bfloat16)))
    assert before.keys() == after.keys()
    for name, (dtype, tensor) in before.items():
        assert after[name][0] == dtype
        assert after[name][1].tobytes() == tensor.tobytes(), name
    other = tmp_path / 'later'
    weight_sources.Run(tmp_path / 'run', 0, {}).keep(other)
    assert (other / 'pretrained' / 'qwen3' / 'dtypes.json').exists()
