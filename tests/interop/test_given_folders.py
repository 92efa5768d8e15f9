"""Entries of `initialise_from` as users write them, and folders as the hub's tools leave them."""

import json
import os
import re
import sys
from pathlib import Path

import processes
import pytest
from small_bpe import small_bpe
from weight_folders import DINOV3, QWEN3, config_of, write

from rf_jax.runtime.errors import UserError
from rf_jax.training import base_weights, initial_weights, run_tokenizer, weight_sources

SNAPSHOT = Path('snapshots') / ('0' * 40)
# Two hosts with folders of their own: a working directory for each.
CHECK = """
import os, sys
from weight_folders import config_of
from rf_jax.runtime import distributed
from rf_jax.runtime.errors import UserError
from rf_jax.training import initial_weights

distributed.start()
os.chdir(os.path.join(sys.argv[1], os.environ['RF_JAX_PROCESS']))
try:
    initial_weights.check(config_of('text', initialise_from='hf:text'))
except UserError as error:
    distributed.abort(error, error.code)
distributed.finish()
"""


@pytest.fixture
def text(tmp_path):
    return write(tmp_path / 'Qwen3-0.6B', QWEN3)


def checked(config, entry):
    config.initialise_from = str(entry)
    initial_weights.check(config)
    return weight_sources.listed(config)


def cached(folder, top):
    """The folder in the layout of the cache of `hf download`: links to blobs."""
    snapshot, blobs = top / SNAPSHOT, top / 'blobs'
    for number, file in enumerate(sorted(folder.iterdir())):
        for made in (snapshot, blobs):
            made.mkdir(parents=True, exist_ok=True)
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f'../../blobs/{number}')
    return snapshot


def test_a_cache_of_the_hub_with_what_else_a_repository_has(text, tmp_path):
    snapshot = cached(text, tmp_path / 'models--Qwen--Qwen3-0.6B')
    for name in ('README.md', '.gitattributes', 'onnx/model.safetensors', 'original/model.pth'):
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).write_text('x')
    config = config_of(snapshot)
    assert checked(config, f'hf:{snapshot}/') == [(weight_sources.Downloaded, snapshot, None)]
    with pytest.raises(UserError, match=rf'give a folder that has one: {snapshot}$'):
        checked(config, f'hf:{snapshot.parents[1]}')


@pytest.mark.parametrize('entry, message', [
    ('hf:Qwen/Qwen3-0.6B',
     r'/Qwen/Qwen3-0\.6B does not exist;.*: hf download Qwen/Qwen3-0\.6B --local-dir Qwen3'),
    ('Qwen3-0.6B', 'Qwen3-0.6B has pretrained weights, which are given as hf:Qwen3-0.6B'),
    ('hf:run', 'run is the folder of a run: give it without hf:'),
    ('hf:a,b', r'does not exist.*\. A comma within a path is written \\, \(backslash, comma\)'),
    ('hf:a', r'/a does not exist; give the folder of downloaded weights$'),
    ('hf:pipeline', 'pipeline has no config.json; give a folder that has one: pipeline/vae'),
])  # fmt: skip
def test_what_was_meant_is_in_the_error(text, tmp_path, monkeypatch, entry, message):
    monkeypatch.chdir(tmp_path)
    config = config_of(text)
    write(tmp_path / 'a,b', QWEN3)
    write(tmp_path / 'pipeline' / 'vae', DINOV3)
    (tmp_path / 'run' / 'checkpoints' / '1').mkdir(parents=True)
    (tmp_path / 'run' / 'checkpoints' / '1' / '_CHECKPOINT_METADATA').write_text('{}')
    with pytest.raises(UserError, match=message) as error:
        checked(config, entry)
    assert '\n' not in str(error.value)


def test_commas_and_spaces_of_paths(text, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = config_of(text)
    text.rename(tmp_path / 'a, b (1)')
    found = checked(config, r' hf: ~/a\, b (1)/ ,')
    assert found == [(weight_sources.Downloaded, tmp_path / 'a, b (1)', None)]
    config.initialise_from = weight_sources.with_absolute_paths(config)
    assert weight_sources.listed(config) == found


def test_a_tokenizer_of_another_model_is_a_warning(tmp_path, caplog):
    for eos, warned in ((302, False), ([5, 300], False), (5, True)):
        rows = {'vocab_size': 400, 'eos_token_id': eos}
        text = write(tmp_path / 'Qwen3', QWEN3 | rows)
        (text / 'tokenizer.json').write_text(small_bpe(), encoding='utf-8')
        assert {*run_tokenizer.of_config(config_of(text), []).ends} == {300, 302}
        wanted = (
            r'Texts of .*Qwen3 end with the id 5 \(eos_token_id\), those .* with 302 or 300: is it'
        )
        assert bool(re.search(wanted, caplog.text)) == warned


def test_the_base_of_adapters_in_another_order(text, tmp_path):
    folders = text, write(tmp_path / 'dinov3', DINOV3)
    config = config_of(*folders, **{'lora.rank': 2})
    held = [
        {'step': 0, 'checksum': weight_sources.digest(kind, folder)}
        for kind, folder, _ in weight_sources.listed(config)
    ]
    (tmp_path / base_weights.FILE).write_text(json.dumps(held))
    assert [source.folder for source in base_weights.recorded(config, tmp_path)] == [*folders]
    config.initialise_from = ','.join(f'hf:{folder}' for folder in reversed(folders))
    with pytest.raises(UserError, match=r'not in the order of .*base\.json, where .*dinov3 is'):
        base_weights.recorded(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('fault, message', [
    (lambda folder: os.rename(folder, f'{folder}_'), r'1/text does not exist'),
    (lambda folder: write(folder, QWEN3, seed=1),
     'text of initialise_from is not the same on all hosts'),
])  # fmt: skip
def test_a_folder_that_differs_between_hosts(tmp_path, fault, message):
    for process in '01':
        write(tmp_path / process / 'text', QWEN3)
    fault(tmp_path / '1' / 'text')
    out = tmp_path / 'logs'
    out.mkdir()
    command = [sys.executable, '-c', CHECK, str(tmp_path)]
    assert processes.start(2, command, out, 2).wait() == [UserError.code] * 2
    for log in out.iterdir():
        assert re.search(rf'error: .*{message}', log.read_text())
