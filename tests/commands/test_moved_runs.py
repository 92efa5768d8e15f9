"""Runs that are opened from another folder or come from another machine."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from shrink import tiny_run

from rf_jax.data import source_list
from rf_jax.evaluation import run_report
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError
from rf_jax.training import train_loop

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

IMAGES = 12


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """(folder, table, log) of a run on the relative folder a/pics with too long captions."""
    folder = tmp_path_factory.mktemp('start')
    images = folder / 'a' / 'pics'
    images.mkdir(parents=True)
    lines = []
    for i in range(IMAGES):
        Image.new('RGB', (40, 40), (20 * i, 99, 200)).save(images / f'{i}.png')
        caption = ' '.join(f'word{i}' for _ in range(100))
        lines.append(json.dumps({'file': f'{i}.png', 'caption': caption}))
    (images / 'captions.jsonl').write_text('\n'.join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / 'a')
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logging.getLogger('absl').addHandler(handler)
        run = tiny_run('run', {'data.sources': 'folder:pics', 'steps': 1})
        logging.getLogger('absl').removeHandler(handler)
        table = run_report.at_end(run, train_loop.train(run))
    return folder, table, records


@pytest.fixture
def elsewhere(trained, monkeypatch):
    """The run, with b/ as the working directory."""
    folder = trained[0] / 'b'
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    yield trained[0] / 'a' / 'run'


def test_the_start_says_how_many_captions_are_truncated(trained):
    (line,) = [line for line in trained[2] if 'truncated' in line]
    assert line.startswith(
        '12 of 12 captions checked do not fit into data.max_text_tokens=16 tokens'
    )


def test_rates_that_cannot_be_reached_are_not_shown(trained):
    assert 'right image among' in trained[1] and 'exact label' not in trained[1]
    assert '2 of 2 labels have more than 4 tokens and cannot be answered exactly' in trained[1]


def test_a_run_on_a_relative_folder_gives_the_same_table_from_another_folder(trained, elsewhere):
    run = Inspector.load(elsewhere)
    data = run.sampler.config.data
    (source,) = source_list.build(data.sources, data.max_pixels)
    table = run_report.evaluate(run, source, elsewhere, 2, run.sampler.config.seed)
    assert table.replace(str(elsewhere), 'run') == trained[1].split('\ncodebook')[0]


def test_a_run_with_moved_data_names_the_path_it_looked_at(trained, elsewhere, tmp_path):
    data = Sampler.load(elsewhere).config.data
    text = data.sources.replace(str(trained[0]), str(tmp_path))
    with pytest.raises(UserError, match=f'looked for {tmp_path}/a/pics/captions.jsonl'):
        source_list.build(text, data.max_pixels)


def test_a_workdir_does_not_dictate_settings_of_the_machine_it_is_opened_on(elsewhere, tmp_path):
    shutil.copytree(elsewhere, tmp_path / 'run')
    config = json.loads((elsewhere / 'config.json').read_text())
    config['compilation_cache'] = str(tmp_path / 'trap')
    config['model']['attention']['implementation'] = 'cudnn'  # there is no GPU
    config['model']['backbone']['moe']['grouped_matmul'] = 'kernel'  # nor a TPU
    config['mesh'] = dict.fromkeys(config['mesh'], 64)
    config['offload'] = ['ema']
    config['data'] |= {'threads': 999, 'sources': 'folder:/none'}
    config['tokenizer']['path'] = '/none'
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    generated = []
    for folder in (elsewhere, tmp_path / 'run'):
        sampler = Sampler.load(folder)
        generated += sampler.generate('word1', seed=0)
        sampler.caption(generated[-1])
    assert np.array_equal(*(each.image for each in generated))
    assert jax.config.jax_compilation_cache_dir != str(tmp_path / 'trap')
    assert not (tmp_path / 'trap').exists()
