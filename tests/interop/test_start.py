"""A run that starts from folders of weights: what comes from where, and what is new."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_bpe import small_bpe
from test_export import save
from weight_folders import DINOV3, QWEN3, config_of, loaded, write

from rf_jax.interop import kept
from rf_jax.interop.pretrained import FAMILIES, Pretrained, mismatches
from rf_jax.runtime.errors import UserError
from rf_jax.training import (
    base_weights,
    ema,
    initial_weights,
    jitted,
    run_tokenizer,
    weight_sources,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp('models')
    return write(top / 'qwen3', QWEN3), write(top / 'dinov3', DINOV3)


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_groups_and_averages_are_copies_and_the_rest_is_new(folders, caplog):
    config = config_of(*folders, **{'optimizer.lr_multipliers': (('^patch_', 4.0),)})
    with caplog.at_level('INFO', logger='absl'):
        _, state = loaded(config, devices=8)
    text, encoder = map(Pretrained, folders)
    layers = state.params['backbone']['layers']
    assert same(layers['pixels'], layers['understanding'])
    assert same(layers['representation'], layers['understanding'])
    assert same(state.ema, state.params)
    whole = (slice(None),) * 3
    up = text.read('backbone/layers/understanding/ffn/up/kernel', whole)
    np.testing.assert_array_equal(layers['understanding']['ffn']['up']['kernel'], up)
    norm = encoder.read('encoder/norm/scale', whole[:1])
    np.testing.assert_array_equal(state.params['encoder']['norm']['scale'], norm)
    buffers = [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), 'the state is donated'

    lines = [line.split(maxsplit=2) for line in caplog.text.splitlines()]
    lines = {line[0]: line[2] for line in lines if len(line) == 3}
    assert lines['backbone/layers/understanding'] == f'hf:{folders[0]}'
    assert lines['backbone/layers/pixels'] == f'hf:{folders[0]}, its backbone/layers/understanding'
    assert lines['encoder'] == f'hf:{folders[1]}'
    assert lines['patch_in'] == 'new; learning rate x 4'
    assert lines['connector'] == lines['codebook'] == 'new'


@pytest.fixture(scope='module')
def earlier(folders, tmp_path_factory):
    """(state, folder) of a run whose arrays all differ from those of the folders, and its average
    from its weights.
    """
    config = config_of(*folders)
    _, state = loaded(config)
    state = state.replace(
        params=jax.tree.map(lambda x: x + 1, state.params),
        ema=jax.tree.map(lambda x: x + 2, state.ema),
        codebook=state.codebook + 3,
    )
    workdir = tmp_path_factory.mktemp('runs') / 'earlier'
    save(state, config, workdir)
    return state, workdir


def test_each_array_comes_from_the_first_entry_that_has_it(folders, earlier, caplog):
    """Of two folders and a run: the run gives what no pretrained model has."""
    before, run = earlier
    config = config_of(*folders, **{'optimizer.lr_multipliers': (('^(patch_|text_head)', 4.0),)})
    config.initialise_from += f',{run}'
    with caplog.at_level('INFO', logger='absl'):
        _, state = loaded(config)
    _, alone = loaded(config_of(*folders))
    published = {'backbone', 'text_embed', 'text_head', 'encoder'}
    for name in ('params', 'ema'):
        found, new, old = (getattr(each, name) for each in (state, before, alone))
        assert published < found.keys()
        for group in found:
            assert same(found[group], (old if group in published else new)[group]), group
    np.testing.assert_array_equal(state.codebook, before.codebook)

    lines = [line.split(maxsplit=2) for line in caplog.text.splitlines()]
    lines = {line[0]: line[2] for line in lines if len(line) == 3}
    assert lines['encoder'] == f'hf:{folders[1]}'
    assert lines['text_head'] == f'hf:{folders[0]}; learning rate x 4'
    assert lines['connector'] == lines['codebook'] == f'{run} at step 0'
    assert lines['patch_in'] == f'{run} at step 0; learning rate x 4'


def test_an_encoder_in_place_of_that_of_a_run(folders, earlier):
    """And what all earlier entries have makes a later one useless, which is an error."""
    before, run = earlier
    config = config_of(*folders, initialise_as=())
    config.initialise_from = f'hf:{folders[1]},{run}'
    config.tokenizer.path = 'any'
    _, state = loaded(config)
    for group in state.ema:
        assert same(state.ema[group], before.ema[group]) == (group != 'encoder'), group
    config.initialise_from += f',hf:{folders[0]}'
    with pytest.raises(UserError, match=rf'nothing of {folders[0]} is used, since earlier runs'):
        loaded(config)


def test_what_is_new_warms_up_in_the_average(folders):
    config = config_of(*folders, **{'ema.warmup': False})
    old = {'connector': {'up': np.zeros(1)}, 'text_head': np.zeros(1)}
    found = ema.average(config, old, jax.tree.map(np.ones_like, old), 1)
    assert found['connector']['up'] > 0.5 > found['text_head']


WRONG = {
    'vocabulary': (
        {},
        161,
        r'params/text_embed/table: \(160, 64\), expected \(161, 64\).*'
        r'The tokenizer has 161 ids, these weights have 160: set tokenizer\.path'
        r'.* config\.json gives the number of rows',
    ),
    'width': ({'model.encoder.width': 32}, 160, r'model\.encoder\.width=32 must be 64'),
    'theta': ({'model.backbone.rope_theta': 1e4}, 160, r'rope_theta=10000\.0 must be 1000000\.0'),
    'no groups': ({'initialise_as': ()}, 160, r'layers/pixels/.*: absent, expected'),
    'unused': ({'initialise_new': ('^encoder/',)}, 160, r'nothing of .*dinov3 is used'),
}


@pytest.mark.parametrize('name', WRONG)
def test_what_does_not_fit_is_an_error_before_any_data_is_read(folders, name, monkeypatch):
    changes, vocabulary, message = WRONG[name]
    config = config_of(*folders, **changes)

    def never(*given, **named):
        raise AssertionError('data was read')

    monkeypatch.setattr('mmap.mmap', never)
    with pytest.raises(UserError, match=message) as error:
        loaded(config, vocabulary=vocabulary)
    assert str(error.value).startswith('initialise_from=')


def test_a_missing_encoder_is_an_error(folders):
    with pytest.raises(UserError, match=r'encoder/.*: absent, expected.*initialise_new'):
        loaded(config_of(folders[0]))


def test_a_missing_folder_is_an_error(folders):
    config = config_of(*folders)
    config.initialise_from = f'hf:{folders[0]}_8B'
    with pytest.raises(UserError, match=r'initialise_from=.*qwen3_8B does not exist'):
        initial_weights.check(config)


def test_all_faults_of_a_folder_are_in_one_line(folders, tmp_path):
    """On a pod, the first line of an error is what everybody sees."""

    def renamed(tensors):
        return {f'x.{name}': value for name, value in tensors.items()}

    folder = write(tmp_path / 'qwen3', QWEN3, change=renamed)
    with pytest.raises(UserError, match=r'q_proj.* is missing; .*; and \d+ more') as error:
        initial_weights.check(config_of(folders[0], initialise_from=f'hf:{folder}'))
    assert '\n' not in str(error.value)


def test_weights_without_a_tokenizer_do_not_get_a_new_one(folders, tmp_path):
    with pytest.raises(UserError, match=r'qwen3 has no tokenizer\.model and no tokenizer\.json'):
        run_tokenizer.find(config_of(*folders), tmp_path, [])


def test_the_tokenizer_is_that_of_the_text_model(folders, tmp_path):
    """A vision model may have one too, of its own text tower."""
    text = write(tmp_path / 'qwen3', QWEN3 | {'vocab_size': 400})
    encoder = shutil.copytree(folders[1], tmp_path / 'dinov3')
    (encoder / 'tokenizer.json').write_text('another')
    (text / 'tokenizer.json').write_text(small_bpe(), encoding='utf-8')
    found = run_tokenizer.find(config_of(encoder, text), tmp_path / 'run', [])
    assert found.encode('a red heart')


def test_what_was_kept_of_an_earlier_start_is_forgotten(folders, tmp_path):
    text, encoder = (weight_sources.Downloaded(folder) for folder in folders)
    weight_sources.keep([text, encoder], tmp_path)
    weight_sources.keep([encoder], tmp_path)
    assert kept.originals(tmp_path).keys() == {'dinov3_vit'}


def test_what_another_source_has_kept_of_its_own_model_is_not_mixed_in(folders, tmp_path):
    instruct = shutil.copytree(folders[0], tmp_path / 'instruct')
    (instruct / 'chat_template.jinja').write_text('of instruct')
    run, both = tmp_path / 'earlier', tmp_path / 'both'
    weight_sources.keep([weight_sources.Downloaded(instruct)], run)
    sources = [weight_sources.Downloaded(folders[0]), weight_sources.Run(run, 0, {})]
    weight_sources.keep(sources, both)
    assert (run / 'pretrained' / 'qwen3' / 'chat_template.jinja').exists()
    assert not (both / 'pretrained' / 'qwen3' / 'chat_template.jinja').exists()


def test_the_statistics_of_pixels_come_back_out(folders, tmp_path):
    """Those of the satellite weights stand beside config.json."""
    encoder = shutil.copytree(folders[1], tmp_path / 'sat')
    statistics = {'image_mean': [0.43, 0.411, 0.296], 'image_std': [0.213, 0.156, 0.143]}
    (encoder / 'preprocessor_config.json').write_text(json.dumps(statistics))
    config = config_of(folders[0], encoder)
    assert config.model.encoder.pixel_mean == (0.43, 0.411, 0.296)
    weight_sources.keep([weight_sources.Downloaded(encoder)], tmp_path / 'run')
    original = kept.originals(tmp_path / 'run')['dinov3_vit']
    assert not mismatches(FAMILIES['dinov3_vit'].fields(original.config), config)


def test_notes_of_a_download_do_not_count_as_weights(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / 'dinov3')
    before = base_weights.checksum(weight_sources.Downloaded, folder)
    (folder / '.cache').mkdir()
    (folder / '.cache' / 'x.metadata').write_text('1')
    (folder / 'README.md').write_text('a model card')
    assert base_weights.checksum(weight_sources.Downloaded, folder) == before
    with (folder / 'model.safetensors').open('r+b') as file:
        file.seek(-1, 2)
        file.write(b'x')
    assert base_weights.checksum(weight_sources.Downloaded, folder) != before


def test_frozen_parts_of_the_base_may_be_named_beside_adapters(folders):
    changes = {'lora.rank': 2, 'lora.full': ('^(connector|representation_|patch_)',)}
    config = config_of(*folders, **changes, **{'optimizer.freeze': ('^encoder/', '^connector/')})
    run, _ = loaded(config)
    assert jitted.optimizer_fields(config, run.abstract.params).freeze == ('^connector/',)
