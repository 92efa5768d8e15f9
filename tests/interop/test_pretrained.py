"""A folder of weights is checked whole before any of its data is read; then slices are read."""

import json

import numpy as np
import pytest
from weight_folders import DINOV3, QWEN3, QWEN3_MOE, specs, write

from configs import base
from rf_jax.interop import pretrained
from rf_jax.interop.pretrained import Pretrained
from rf_jax.runtime.errors import UserError

UP = 'model.layers.1.mlp.up_proj.weight'
EXPERT = 'model.layers.1.mlp.experts.3.up_proj.weight'


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """No test of this file but those that ask for data may map a file."""

    def never(*given, **named):
        raise AssertionError('data was read')

    monkeypatch.setattr('mmap.mmap', never)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def renamed(old, new):
    return lambda tensors: {new if key == old else key: value for key, value in tensors.items()}


def changed(name, value_of):
    return lambda tensors: tensors | {name: value_of(tensors[name])}


TENSORS = {
    'dropped': (QWEN3, without(UP), rf'{UP} \[96, 64\] is missing'),
    'renamed': (QWEN3_MOE, renamed(EXPERT, 'model.layers.1.mlp.experts.8.up_proj.weight'),
                r'(?s)experts\.3\.up_proj.* missing.*experts\.8\.up_proj.* in .* is not known'),
    'shape': (QWEN3, changed(UP, lambda x: x.T), rf'{UP} in .* is \[64, 96\], expected \[96, 64\]'),
    'dtype': (QWEN3, changed(UP, lambda x: x.astype(np.float32)),
              f'{UP} in .* is float32; config.json says bfloat16'),
    'quantised': (QWEN3, changed(UP, lambda x: x.astype(np.int8)), f'{UP} in .* is int8'),
    'untied without head': (QWEN3, without('lm_head.weight'), r'lm_head\.weight .* is missing'),
    'bias': (DINOV3, without('layer.0.attention.q_proj.bias'), r'q_proj\.bias \[64\] is missing'),
    'a gate': (DINOV3 | {'use_gated_mlp': True, 'hidden_act': 'silu'},
               without('layer.1.mlp.gate_proj.weight'), r'gate_proj\.weight .* is missing'),
}  # fmt: skip


@pytest.mark.parametrize('name', TENSORS)
def test_wrong_tensors_are_one_error_that_lists_them(tmp_path, name):
    config, change, message = TENSORS[name]
    write(tmp_path, config, change=change)
    with pytest.raises(UserError, match=message):
        Pretrained(tmp_path)


def test_all_faults_are_in_one_error(tmp_path):
    write(tmp_path, QWEN3, change=lambda t: without('model.norm.weight')(without(UP)(t)))
    with pytest.raises(UserError, match=rf'(?s)\(2\):.*model\.norm\.weight.*{UP}'):
        Pretrained(tmp_path)


CONFIGS = {
    'yarn': (QWEN3, {'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "rope_type='yarn'"),
    'yarn of transformers 5': (
        QWEN3, {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e6}}, "rope_type='yarn'"),
    'old name of the type': (QWEN3, {'rope_scaling': {'type': 'linear'}}, "rope_type='linear'"),
    'activation': (QWEN3, {'hidden_act': 'gelu'}, "hidden_act='gelu' .* only 'silu'"),
    'biases': (QWEN3, {'attention_bias': True}, 'attention_bias=True'),
    'window': (QWEN3, {'use_sliding_window': True}, 'use_sliding_window=True'),
    'router': (QWEN3_MOE, {'norm_topk_prob': False}, 'norm_topk_prob=False .* only True'),
    'some layers dense': (QWEN3_MOE, {'decoder_sparse_step': 2}, 'decoder_sparse_step=2'),
    'a layer dense': (QWEN3_MOE, {'mlp_only_layers': [0]}, r'mlp_only_layers=\[0\]'),
    'key bias': (DINOV3, {'key_bias': True}, 'key_bias=True'),
    'gated gelu': (DINOV3, {'use_gated_mlp': True}, "hidden_act='gelu' .* only 'silu'"),
    'quantised': (QWEN3, {'quantization_config': {'quant_method': 'fp8'}},
                  r"quantization_config=\{'quant_method': 'fp8'\} is not supported, only None"),
    'size as text': (QWEN3, {'hidden_size': '64'}, r"whole numbers, but give \{'width': '64'\}"),
    'size with a point': (DINOV3, {'intermediate_size': 96.0}, r"give \{'feedforward': 96\.0\}"),
    'heads as a list': (QWEN3, {'num_attention_heads': [4]}, 'sizes must be whole numbers'),
    'size is null': (DINOV3, {'hidden_size': None}, 'sizes must be whole numbers'),
    'rope as a list': (QWEN3, {'rope_parameters': [1e6]}, 'has a value of another type: '),
    'theta as text': (DINOV3, {'rope_theta': 'large'}, "another type: could not convert .*'large'"),
    'no family': (QWEN3, {'model_type': None}, r'has no model_type: .*--to=orbax: of rf_jax'),
    'family': (QWEN3, {'model_type': 'qwen2'}, "model_type='qwen2' is not known.* 'qwen3'"),
}  # fmt: skip


@pytest.mark.parametrize('name', CONFIGS)
def test_what_our_model_does_not_compute_is_refused(tmp_path, name):
    config, changes, message = CONFIGS[name]
    write(tmp_path, config)
    (tmp_path / 'config.json').write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        Pretrained(tmp_path)


def test_a_router_without_a_word_on_renormalising_does_not(tmp_path):
    write(tmp_path, {k: v for k, v in QWEN3_MOE.items() if k != 'norm_topk_prob'})
    with pytest.raises(UserError, match='norm_topk_prob=False'):
        Pretrained(tmp_path)


def truncate(folder):
    file = sorted(folder.glob('*.safetensors'))[1]
    file.write_bytes(file.read_bytes()[:-1])


def link(folder, name, target):
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(target)


def pointer(folder):
    file = sorted(folder.glob('*.safetensors'))[1]
    file.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n')


def misplace(folder):
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    first = next(iter(index['weight_map']))
    index['weight_map'][first] = sorted(set(index['weight_map'].values()))[-1]
    path.write_text(json.dumps(index))


FILES = {
    'truncated': (truncate, r'model-00002-of-\d+\.safetensors has [\d,]+ bytes, expected'),
    'missing': (lambda f: next(f.glob('model-00001-*')).unlink(),
                r'model-00001-of-\d+\.safetensors \(of model.safetensors.index.json\) is missing'),
    'stale': (lambda f: (f / 'model-00009-of-00009.safetensors').write_bytes(b''),
              r'model-00009-of-00009\.safetensors is not a file of'),
    'index': (misplace, r'embed_tokens\.weight: model\.safetensors\.index\.json says'),
    'pickle': (lambda f: (f / 'pytorch_model.bin').write_bytes(b'\x80'),
               r'pickles, which are never opened: pytorch_model\.bin'),
    'no config': (lambda f: (f / 'config.json').unlink(), r'has no config\.json'),
    'web page': (lambda f: next(f.glob('model-00001-*')).write_text('<!doctype html>' * 9),
                 'is truncated, or no safetensors file'),
    'git without LFS': (pointer, r'model-00002-of-\d+\.safetensors is a pointer of Git LFS'),
    'a link of a cache': (
        lambda f: link(f, next(f.glob('model-00001-*')).name, '../../blobs/0'),
        r'model-00001-of-\d+\.safetensors is a link to a file that is not there: .*cp -rL'),
    'config is a link': (lambda f: link(f, 'config.json', '../../blobs/0'),
                         r'config\.json is a link to a file that is not there'),
    'empty': (lambda f: [file.unlink() for file in f.glob('model*')],
              'neither model.safetensors nor'),
}  # fmt: skip


@pytest.mark.parametrize('name', FILES)
def test_damaged_folders(tmp_path, name):
    damage, message = FILES[name]
    write(tmp_path, QWEN3, limit=100_000)
    assert len(Pretrained(tmp_path).leaves) == 14
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        Pretrained(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path):
    write(tmp_path, QWEN3)
    link(tmp_path, 'model.safetensors', 'model.safetensors')
    with pytest.raises(UserError, match=r'model\.safetensors cannot be read: Too many levels'):
        Pretrained(tmp_path)


def test_a_pickle_is_never_opened(tmp_path):
    write(tmp_path, QWEN3)
    (tmp_path / 'model.pth').mkdir()  # opening it would raise another error
    with pytest.raises(UserError, match='never opened'):
        Pretrained(tmp_path)


def fitting(*folders):
    config = base.get_config()
    for folder in folders:
        config.update_from_flattened_dict(pretrained.config_fields(folder))
    return config


@pytest.mark.parametrize('original', [QWEN3, QWEN3_MOE, DINOV3], ids=lambda c: c['model_type'])
def test_every_field_that_the_checkpoint_fixes_is_compared(tmp_path, original):
    """Each field in turn gets another value: an error that names both."""
    weights = Pretrained(write(tmp_path, original))
    weights.check(fitting(tmp_path))
    fields = weights.fields()
    assert len(fields) >= 10
    for field, value in fields.items():
        if field == 'tokenizer.vocab_size':
            continue
        other = {bool: lambda v: not v, str: lambda v: v + '?', tuple: lambda v: (0.5,) * 3}.get(
            type(value), lambda v: v * 2
        )(value)
        config = fitting(tmp_path)
        config.update_from_flattened_dict({field: other})
        with pytest.raises(UserError) as error:
            weights.check(config)
        assert f'{field}={other!r} must be {value!r}' in str(error.value)


def test_theta_and_types_as_transformers_5_writes_them(tmp_path):
    new = {k: v for k, v in QWEN3.items() if k not in ('rope_theta', 'rope_scaling', 'torch_dtype')}
    new |= {'rope_parameters': {'rope_type': 'default', 'rope_theta': 5e6}, 'dtype': 'bfloat16'}
    assert pretrained.config_fields(write(tmp_path, new))['model.backbone.rope_theta'] == 5e6


def test_a_folder_of_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write(tmp_path / 'qwen3', QWEN3)
    assert pretrained.config_fields('~/qwen3') == pretrained.config_fields(tmp_path / 'qwen3')


def test_the_mean_of_pixels_comes_from_the_preprocessor(tmp_path):
    write(tmp_path, DINOV3)
    own = {'image_mean': [0.43, 0.411, 0.296], 'image_std': [0.213, 0.156, 0.143]}
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(own))
    assert pretrained.config_fields(tmp_path)['model.encoder.pixel_mean'] == (0.43, 0.411, 0.296)


class TestReading:
    """Slices of ours against numpy on the whole tensors."""

    @pytest.fixture(autouse=True)
    def unread(self):
        """Data may be read here."""

    def test_slices_of_stacked_experts(self, tmp_path):
        kept = {}
        write(tmp_path, QWEN3_MOE, change=lambda t: kept.update(t) or t)
        weights = Pretrained(tmp_path)
        name = 'model.layers.{}.mlp.experts.{}.up_proj.weight'
        whole = np.stack([[kept[name.format(n, e)].astype(np.float32).T for e in range(8)]
                          for n in range(3)])  # fmt: skip
        path = 'backbone/layers/understanding/up'
        assert weights.leaves[path].shape == whole.shape == (3, 8, 64, 48)
        index = slice(1, 3), slice(2, 6), slice(16, 32), slice(None)
        np.testing.assert_array_equal(weights.read(path, index), whole[index])

    def test_fused_experts_are_the_same(self, tmp_path):
        def fuse(tensors):
            found = {k: v for k, v in tensors.items() if '.experts.' not in k}
            for n in range(3):
                at = f'model.layers.{n}.mlp.experts'
                both = [
                    np.concatenate(
                        [tensors[f'{at}.{e}.{part}_proj.weight'] for part in ('gate', 'up')]
                    )
                    for e in range(8)
                ]
                found[f'{at}.gate_up_proj'] = np.stack(both)
                down = [tensors[f'{at}.{e}.down_proj.weight'] for e in range(8)]
                found[f'{at}.down_proj'] = np.stack(down)
            return found

        one = Pretrained(write(tmp_path / 'each', QWEN3_MOE))
        fused = Pretrained(write(tmp_path / 'fused', QWEN3_MOE, change=fuse))
        assert one.leaves.keys() == fused.leaves.keys()
        for path, leaf in one.leaves.items():
            index = (slice(None),) * len(leaf.shape)
            assert fused.leaves[path].shape == leaf.shape
            np.testing.assert_array_equal(fused.read(path, index), one.read(path, index))

    def test_class_token_before_registers_and_patches_by_channel_last(self, tmp_path):
        kept = {}
        weights = Pretrained(write(tmp_path, DINOV3, change=lambda t: kept.update(t) or t))
        both = weights.read('encoder/class_and_registers', (slice(0, 3), slice(None)))
        np.testing.assert_array_equal(both[0], kept['embeddings.cls_token'][0, 0])
        np.testing.assert_array_equal(both[1:], kept['embeddings.register_tokens'][0, :2])
        kernel = weights.read('encoder/patch_embed/kernel', (slice(None), slice(None)))
        conv = kept['embeddings.patch_embeddings.weight']
        row, column, channel = 3, 5, 2
        np.testing.assert_array_equal(kernel[(row * 16 + column) * 3 + channel],
                                      conv[:, channel, row, column])  # fmt: skip

    @pytest.mark.parametrize('present', [False, True])
    def test_a_tied_head_is_the_embedding(self, tmp_path, present):
        head, table = 'lm_head.weight', 'model.embed_tokens.weight'
        tied = QWEN3 | {'tie_word_embeddings': True}

        def change(tensors):
            rest = {k: v for k, v in tensors.items() if k != head}
            return rest | ({head: tensors[table]} if present else {})

        weights = Pretrained(write(tmp_path, tied, change=change))
        weights.check_tied()
        whole = (slice(None), slice(None))
        np.testing.assert_array_equal(weights.read('text_head/kernel', whole),
                                      weights.read('text_embed/table', whole).T)  # fmt: skip

    def test_a_tied_head_that_differs_is_an_error(self, tmp_path):
        tied = QWEN3 | {'tie_word_embeddings': True}
        change = lambda t: t | {'lm_head.weight': t['model.embed_tokens.weight'] + 1}  # noqa: E731
        with pytest.raises(UserError, match=r'lm_head\.weight differs from model\.embed_tokens'):
            Pretrained(write(tmp_path, tied, change=change)).check_tied()


def test_the_names_are_those_of_the_published_files():
    """Spelled out, so that the table is not only compared with itself."""
    names = {spec.name: spec.shape for spec in specs(QWEN3_MOE)}
    assert len(names) == 3 * (9 + 3 * 8) + 3
    assert names['model.layers.2.mlp.experts.7.down_proj.weight'] == (64, 48)
    assert names['model.layers.0.self_attn.q_proj.weight'] == (128, 64)
    assert names['model.layers.0.mlp.gate.weight'] == (8, 64)
    dino = {spec.name: spec.shape for spec in specs(DINOV3)}
    assert dino['embeddings.patch_embeddings.weight'] == (64, 3, 16, 16)
    assert dino['layer.1.layer_scale2.lambda1'] == (64,)
