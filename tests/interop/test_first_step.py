"""From downloaded folders to a trained run and out again, by configs/finetune.py."""

import json

import jax
import numpy as np
import pytest
from shrink import shrink
from small_bpe import small_bpe
from weight_folders import DINOV3, QWEN3, write

from configs import finetune
from rf_jax.generation import weight_export
from rf_jax.generation.sampler import Sampler
from rf_jax.interop.files import Folder
from rf_jax.interop.pretrained import config_fields
from rf_jax.runtime import checkpoint, checkpoint_files
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow
ROWS = 400  # of the vocabulary
OWN_STOP = (1,)  # the end of the original's texts
EMBEDDING = 'model.embed_tokens.weight'  # `lora` leaves it as it is


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp('models')
    text = write(top / 'Qwen3', QWEN3 | {'vocab_size': ROWS})
    (text / 'tokenizer.json').write_text(small_bpe(), encoding='utf-8')
    (text / 'generation_config.json').write_text(json.dumps({'eos_token_id': OWN_STOP[0]}))
    return text, write(top / 'dinov3', DINOV3)


@pytest.fixture(scope='module', params=finetune.VARIANTS)
def run(request, folders, tmp_path_factory):
    """(variant, workdir) of a run of four steps."""
    config = finetune.get_config(request.param)
    rank = config.lora.rank
    config = shrink(config)
    config.lora.rank = min(rank, 4)
    for folder in folders:
        config.update_from_flattened_dict(config_fields(folder))
    config.model.backbone.rope_sections = (8, 4, 4)
    config.data.capacity.text, config.data.max_text_tokens = 64, 32
    config.optimizer.grad_accum_steps = 2
    config.optimizer.learning_rate = 1e-3
    config.initialise_from = ','.join(f'hf:{folder}' for folder in folders)
    workdir = tmp_path_factory.mktemp('runs') / request.param
    state = train_loop.train(train_loop.build(config, workdir, jax.devices()[:1]))
    assert int(state.step) == config.steps and int(state.skipped) == 0
    return request.param, workdir


def test_the_tokenizer_comes_with_the_weights(run):
    _, workdir = run
    sampler = Sampler.load(workdir)
    assert sampler.tokenizer.size == ROWS and (workdir / 'tokenizer.json').exists()
    (image,) = sampler.generate('a red heart', seed=0)
    assert isinstance(sampler.answer(image.image, 'What is this?'), str)


def test_what_was_trained_comes_out_and_the_rest_as_it_was(run, folders, tmp_path):
    variant, workdir = run
    weight_export.to_hf(workdir, 4, 'raw', tmp_path)
    before, after = Folder(folders[0]), Folder(tmp_path / 'qwen3')
    assert before.entries.keys() == after.entries.keys()
    same = {name: np.array_equal(before.tensor(name), after.tensor(name)) for name in after.entries}
    query = 'model.layers.0.self_attn.q_proj.weight'
    assert not same[query]
    assert same[EMBEDDING] == (variant == 'lora')
    assert (tmp_path / 'qwen3' / 'tokenizer.json').exists()
    stops = json.loads((tmp_path / 'qwen3' / 'generation_config.json').read_text())
    assert stops == {'eos_token_id': [*OWN_STOP, *Sampler.load(workdir).tokenizer.ends]}
    config = json.loads((tmp_path / 'rf_jax' / 'config.json').read_text())
    assert config['lora']['rank'] == 0, 'merged'


def test_an_exported_run_gives_the_same_images(run, tmp_path):
    """Of a run with adapters, with these merged in."""
    _, workdir = run
    weight_export.to_orbax(workdir, 4, None, tmp_path)
    ours, theirs = Sampler.load(workdir), Sampler.load(tmp_path)
    a, b = (checkpoint_files.flatten(each.params) for each in (ours, theirs))
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=1e-6, atol=1e-6, err_msg=path)
    assert theirs.config.lora.rank == 0
    listed = set((tmp_path / 'parameters.txt').read_text().split())
    stacked = checkpoint.restore_numpy(tmp_path / 'checkpoints', only='params')[1]
    assert checkpoint_files.flatten(stacked['params']).keys() <= listed
