"""A run with a tokenizer.json: trained, resumed, sampled and gone on from by another run."""

import json
import shutil

import jax
import numpy as np
import pytest
from shrink import tiny_run
from small_bpe import CHATML, VISION, small_bpe, write_weights

from configs import base
from rf_jax.data import source_list
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError
from rf_jax.training import run_tokenizer, train_loop

pytest.importorskip('tokenizers')
pytestmark = pytest.mark.slow

ROWS = 400
TEXT = {'data.max_text_tokens': 32, 'data.capacity.text': 64}
IMAGE = np.full((64, 64, 3), 200, np.uint8)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    content = small_bpe(specials=CHATML + VISION)
    return write_weights(tmp_path_factory.mktemp('weights') / 'Qwen', content, ROWS)


@pytest.fixture(scope='module')
def trained(weights, tmp_path_factory):
    """A run of four steps, whose tokenizer was then removed from where it came from."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    copy = shutil.copytree(weights, folder.with_name('copy'))
    run = run_of(folder, copy, steps=4)
    state = train_loop.train(run)
    shutil.rmtree(copy)
    return folder, run, state


def run_of(folder, path, **changes):
    return tiny_run(folder, TEXT | {'tokenizer.path': str(path)} | changes)


def test_the_folder_of_the_run_holds_the_tokenizer(trained):
    folder, run, _ = trained
    assert (folder / 'tokenizer.json').read_bytes() == run.tokenizer.model_bytes
    assert not (folder / 'tokenizer.model').exists()
    versions = json.loads((folder / 'version.json').read_text())
    assert versions['tokenizer_sha256'] == run.tokenizer.checksum
    assert run.abstract.params['text_embed']['table'].shape[0] == run.tokenizer.size == ROWS
    assert json.loads((folder / 'config.json').read_text())['tokenizer']['path']


def test_a_resumed_run_is_bit_equal(trained, weights, tmp_path):
    """Also once the weights that the tokenizer came with are gone."""
    *_, whole = trained
    copy = shutil.copytree(weights, tmp_path / 'copy')
    train_loop.train(run_of(tmp_path / 'run', copy, steps=2))
    shutil.rmtree(copy)
    resumed = train_loop.train(run_of(tmp_path / 'run', copy, steps=4))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


def test_it_samples_describes_and_chats(trained):
    folder, run, _ = trained
    sampler = Sampler.load(folder)
    assert sampler.tokenizer.checksum == run.tokenizer.checksum
    assert sampler.generate('red apple', seed=0)[0].image.shape == (64, 64, 3)
    assert isinstance(sampler.answer(IMAGE, 'What is this?'), str)
    talk = sampler.conversation()
    for _ in range(2):
        said = talk.send('what is this?', max_tokens=3, images=False)
        assert said.role == 'assistant'


def test_another_run_starts_with_its_tokenizer(trained, tmp_path):
    folder, run, _ = trained
    other = tiny_run(tmp_path / 'other', TEXT | {'initialise_from': str(folder)})
    assert other.tokenizer.checksum == run.tokenizer.checksum
    by_path = run_of(tmp_path / 'third', folder)  # the folder of a run is named as weights are
    assert by_path.tokenizer.checksum == run.tokenizer.checksum


def test_a_start_with_another_tokenizer_leaves_one_file(weights, tmp_path):
    """As long as there is no checkpoint; the newest config decides."""
    folder = tmp_path / 'run'
    for path, name in (
        ('', 'tokenizer.model'),
        (weights, 'tokenizer.json'),
        ('', 'tokenizer.model'),
    ):
        train_loop.write_start(run_of(folder, path))
        assert [each.name for each in sorted(folder.glob('tokenizer.*'))] == [name]


def test_too_few_tokens_for_a_question_are_refused(weights, tmp_path):
    with pytest.raises(UserError, match=r'data\.max_text_tokens=8: with tokenizer\.json, \d+ tok'):
        run_of(tmp_path, weights, **{'data.max_text_tokens': 8})


def test_an_absent_tokenizer_is_named(tmp_path):
    config = base.get_config()
    config.tokenizer.path = str(tmp_path / 'Qwen3-0.6B')
    with pytest.raises(UserError, match=r'cannot read tokenizer .*Qwen3-0\.6B'):
        run_tokenizer.find(config, tmp_path, source_list.build('emoji', 10**6))
