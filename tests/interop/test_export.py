"""Weights go out as they came in, and as transformers reads them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_folders import DINOV3, QWEN3, QWEN3_MOE, config_of, loaded, write

from rf_jax.generation import weight_export
from rf_jax.interop import kept, writing
from rf_jax.interop.files import Folder
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.training import weight_sources

pytestmark = pytest.mark.slow

TIED = QWEN3 | {'tie_word_embeddings': True}


def tied_head(tensors):
    return tensors | {'lm_head.weight': tensors['model.embed_tokens.weight']}


ORIGINALS = {
    'qwen3': (QWEN3, lambda tensors: tensors),
    'qwen3_moe': (QWEN3_MOE, lambda tensors: tensors),
    'tied': (TIED, lambda tensors: {k: v for k, v in tensors.items() if k != 'lm_head.weight'}),
    'tied, head present': (TIED, tied_head),
}


def save(state, config, workdir):
    """A run's folder with this state at step 0."""
    checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', every=1, keep=1)
    checkpoints.save(0, state)
    checkpoints.close()
    (workdir / 'config.json').write_text(config.to_json_best_effort())
    for kind, folder, _ in weight_sources.listed(config):
        kind.open(folder).keep(workdir)


@pytest.fixture(scope='module', params=ORIGINALS)
def run(request, tmp_path_factory):
    """(folders of the originals, config, state, workdir)"""
    top = tmp_path_factory.mktemp('runs')
    config, change = ORIGINALS[request.param]
    text = write(top / 'text', config, limit=200_000, change=change)
    folders = {config['model_type']: text, 'dinov3_vit': write(top / 'dinov3', DINOV3, seed=1)}
    ours = config_of(*folders.values())
    _, state = loaded(ours, devices=8)
    save(state, ours, top / 'run')
    return folders, ours, state, top / 'run'


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that a tensor is written in several."""
    monkeypatch.setattr(writing, 'PIECE', 1000)


def exported(workdir, to, weights='average'):
    to.mkdir()
    weight_export.to_hf(workdir, 0, weights, to)
    return to


def contents(folder):
    found = Folder(folder)
    return {name: (entry.dtype, found.tensor(name)) for name, entry in found.entries.items()}


@pytest.mark.parametrize('weights', ['average', 'raw'])
def test_untrained_weights_come_out_bit_for_bit(run, tmp_path, weights):
    """All tensors of the originals, those that we do not use included, and config.json."""
    folders, _, _, workdir = run
    out = exported(workdir, tmp_path / 'out', weights)
    for kind, folder in folders.items():
        before, after = contents(folder), contents(out / kind)
        assert before.keys() == after.keys()
        for name, (dtype, tensor) in before.items():
            assert after[name][0] == dtype
            assert after[name][1].tobytes() == tensor.tobytes(), name
        configs = [json.loads((f / 'config.json').read_text()) for f in (folder, out / kind)]
        assert configs[0] == configs[1]


def test_the_whole_model_by_our_own_names(run, tmp_path):
    _, _, state, workdir = run
    whole = contents(exported(workdir, tmp_path / 'out') / 'rf_jax')
    assert len(whole) == len(jax.tree.leaves(state.ema))
    np.testing.assert_array_equal(
        whole['connector/up/kernel'][1], state.ema['connector']['up']['kernel']
    )


def test_a_later_run_keeps_what_the_first_has_kept(run, tmp_path):
    *_, workdir = run
    weight_sources.Run(workdir, 0, {}).keep(tmp_path)
    assert kept.originals(tmp_path).keys() == kept.originals(workdir).keys()


def test_trained_weights_are_rounded_to_the_dtype_of_the_original(run, tmp_path):
    """And a head that has left its embedding is written, with config.json saying so."""
    folders, config, state, _ = run
    kind = next(iter(folders))
    params = {**state.params, 'text_head': {'kernel': state.params['text_head']['kernel'] * 1.01}}
    save(state.replace(params=params), config, tmp_path / 'run')
    out = exported(tmp_path / 'run', tmp_path / 'out', 'raw') / kind
    wanted = np.asarray(params['text_head']['kernel'].T).astype(jnp.bfloat16)
    np.testing.assert_array_equal(contents(out)['lm_head.weight'][1], wanted)
    assert not json.loads((out / 'config.json').read_text())['tie_word_embeddings']


def test_transformers_opens_it(run, tmp_path):
    transformers = pytest.importorskip('transformers')
    folders, _, state, workdir = run
    out = exported(workdir, tmp_path / 'out')
    for kind in folders:
        model, info = transformers.AutoModel.from_pretrained(out / kind, output_loading_info=True)
        assert not info['missing_keys'] and not info['mismatched_keys'], kind
        assert set(info['unexpected_keys']) <= {'lm_head.weight'}, kind
        norm = model.norm.weight.detach().float().numpy()
        ours = state.ema['encoder' if kind == 'dinov3_vit' else 'backbone']['norm']['scale']
        np.testing.assert_array_equal(norm, ours)


def test_a_run_without_pretrained_weights(run, tmp_path):
    """config.json is made of ours."""
    folders, config, _, workdir = run
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text(config.to_json_best_effort())
    (tmp_path / 'run' / 'checkpoints').symlink_to(workdir / 'checkpoints')
    out = exported(tmp_path / 'run', tmp_path / 'out')
    back = config_of(*(out / kind for kind in folders))
    for field in ('backbone', 'encoder'):
        assert back.model[field].to_dict() == config.model[field].to_dict()
    _, state = loaded(back)
    before = run[2].ema['backbone']['layers']['understanding']
    after = state.params['backbone']['layers']['understanding']
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_orbax_is_a_run_to_start_from(run, tmp_path):
    _, config, state, workdir = run
    (tmp_path / 'out').mkdir()
    weight_export.to_orbax(workdir, 0, None, tmp_path / 'out')
    config = config.copy_and_resolve_references()
    config.update(initialise_from=str(tmp_path / 'out'), initialise_as=())
    config.tokenizer.path = 'any'
    _, again = loaded(config, devices=8)
    for name in ('params', 'ema', 'codebook'):
        for a, b in zip(jax.tree.leaves(getattr(state, name)),
                        jax.tree.leaves(getattr(again, name)), strict=True):  # fmt: skip
            np.testing.assert_array_equal(a, b)


def test_orbax_on_an_odd_number_of_devices(run, tmp_path, monkeypatch):
    *_, state, workdir = run
    devices = jax.devices()
    monkeypatch.setattr(jax, 'devices', lambda *_: devices[:7])
    held = weight_export._state(workdir, 0, weight_export._config(workdir))
    query = held['ema']['backbone']['layers']['attention']['query']['kernel']
    assert len(query.sharding.device_set) == 4 and not query.is_fully_replicated
    for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(held['ema']), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_one_kind_are_not_for_orbax(tmp_path):
    with pytest.raises(UserError, match=r'--weights=raw is for --to=hf: alone; orbax: writes both'):
        weight_export.to_orbax(tmp_path, 0, 'raw', tmp_path)


def test_a_config_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / 'config.json').write_text('{"seed": ')
    for export in weight_export.KINDS.values():
        with pytest.raises(UserError, match=r'config\.json cannot be read'):
            export(tmp_path, 0, None, tmp_path / 'out')


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    with (
        pytest.raises(UserError, match='stop'),
        weight_export.new_folder(tmp_path / 'out') as folder,
    ):
        (folder / 'half').write_text('')
        raise UserError('stop')
    assert not list(tmp_path.iterdir())
    (tmp_path / 'out').mkdir()
    with (
        pytest.raises(UserError, match='out exists; give a folder that does not'),
        weight_export.new_folder(tmp_path / 'out'),
    ):
        pass
