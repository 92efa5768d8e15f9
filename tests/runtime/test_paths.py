"""paths.py: home folders and URLs, wherever Python code or a config takes a path."""

from pathlib import Path

import pytest

from configs import base
from rf_jax.data import source_list
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint, paths, workdir
from rf_jax.runtime.errors import UserError
from rf_jax.study import ladder, plan
from rf_jax.training import train_loop

URLS = ('gs://b/run', 's3://b/run', 'hdfs://b/run', 'file:///run', Path('gs://b/run'))
# Everything that takes a path, and part of its error message for a missing folder.
READERS = {
    'Sampler.load': (Sampler.load, 'has no config.json'),
    'Inspector.load': (Inspector.load, 'has no config.json'),
    'restore_numpy': (checkpoint.restore_numpy, 'No checkpoint in'),
    'load_tokenizer': (load_tokenizer, 'cannot read tokenizer'),
    'load_arms': (plan.load_arms, 'no such file'),
    'folder': (lambda path: source_list.build(f'folder:{path}', 9), 'looked for'),
    'text': (lambda path: source_list.build(f'text:{path}', 9), 'looked for'),
}
WRITERS = {
    'check_writable': workdir.check_writable,
    'write_run_files': lambda path: workdir.write_run_files(path, {'a': 'b'}),
    'lock': lambda path: workdir.lock(path).close(),
    'Checkpoints': lambda path: checkpoint.Checkpoints(path, 1, 1).close(),
}
ON_A_DISK = ('load_arms', 'folder', 'text', 'lock')
FIELDS = {
    'tokenizer.path': 'hdfs://b/x',
    'initialise_from': 'hdfs://b/x',
    'data.sources': 'emoji,folder:gs://b/x',
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder, and an empty working directory next to it."""
    for name in ('home', 'here'):
        (tmp_path / name).mkdir()
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path / 'here')
    yield tmp_path / 'home'
    assert not list((tmp_path / 'here').iterdir())


@pytest.mark.parametrize('url', URLS, ids=str)
def test_a_url_is_refused(url):
    with pytest.raises(UserError, match=r'^--out=.*b?/?run is a URL'):
        paths.local(url, '--out')


@pytest.mark.parametrize('name', [*READERS, *WRITERS])
def test_every_function_refuses_a_url(name):
    function = WRITERS.get(name) or READERS[name][0]
    url = 'gs://b/run' if name in ON_A_DISK else 'hdfs://b/run'
    with pytest.raises(UserError, match=f'{url} is a URL'):
        function(url)


@pytest.mark.parametrize(
    ('given', 'found'),
    {
        'gs://b/run': 'gs://b/run',
        's3://b/run/': 's3://b/run',
        Path('gs://b/run'): 'gs://b/run',
        '~/run': '{}/run',
    }.items(),
    ids=str,
)
def test_a_bucket_is_a_place_where_runs_can_be(given, found, home):
    pytest.importorskip('gcsfs')
    pytest.importorskip('s3fs')
    path = paths.anywhere(given, '--workdir')
    assert str(path) == str(paths.absolute(path)) == found.format(home)
    assert (path / 'a').name == 'a' and str(path / 'a') == f'{found.format(home)}/a'


@pytest.mark.parametrize('url', ['gs://', 's3:///run', 'hdfs://b/run', 'file:///run'])
def test_what_is_no_bucket_is_refused(url):
    with pytest.raises(UserError, match=rf'^--workdir={url} (is a URL|names no bucket)'):
        paths.anywhere(url, '--workdir')


@pytest.mark.parametrize('name', READERS)
def test_a_tilde_is_expanded_where_files_are_read(name, home):
    function, words = READERS[name]
    with pytest.raises(UserError, match=words) as error:
        function('~/none')
    assert f'{home}/none' in str(error.value)


@pytest.mark.parametrize('name', WRITERS)
def test_a_tilde_is_expanded_where_files_are_written(name, home):
    WRITERS[name]('~/run')
    assert (home / 'run').is_dir()


def test_a_tilde_is_expanded_for_the_rungs_of_the_ladder(home):
    (rung, *_) = ladder.rungs(base_of_rungs(), '~/runs')
    assert rung.folder == home / 'runs/study'


def base_of_rungs():
    from ml_collections import ConfigDict

    return ConfigDict({'rungs': {'heading': (('1', 'study', 'a', 'b', 0),)}})


@pytest.mark.parametrize('field', FIELDS)
def test_a_path_field_refuses_a_url_and_no_folder_is_created(field, tmp_path):
    config = base.get_config()
    config.update_from_flattened_dict({field: FIELDS[field]})
    with pytest.raises(UserError, match=rf'^{field}=\w+://b/x is a URL'):
        train_loop.build(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_tilde_is_expanded_in_initialise_from(home):
    from rf_jax.training import weight_sources

    config = base.get_config()
    config.initialise_from = '~/a, ~/b'
    assert weight_sources.other_runs(config) == [home / 'a', home / 'b']


def test_relative_sources_are_recorded_absolute(tmp_path):
    found = source_list.with_absolute_paths('emoji, folder:pics,text:~/a.txt,scenes:aligned/48')
    assert found == (
        f'emoji,folder:{tmp_path}/here/pics,text:{tmp_path}/home/a.txt,scenes:aligned/48'
    )
    assert source_list.with_absolute_paths(found) == found


def test_the_arms_of_a_study_are_found_from_any_folder():
    assert 'pixel_rf' in plan.load_arms('configs/scenes.py').needs
