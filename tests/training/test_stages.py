"""The paper's three stages in a chain: each starts from the weights of the previous one."""

import shutil

import jax
import numpy as np
import pytest
from shrink import shrink, trained_once

from configs import base, paper, scenes, stages
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, optimizer, train_loop

pytestmark = pytest.mark.slow

STAGES = ('alignment', 'joint', 'continued')


def build(stage, workdir, initialise_from='', **changes):
    config = shrink(stages.get_config(stage))
    config.steps = 2
    config.initialise_from = str(initialise_from)
    config.update_from_flattened_dict(changes)
    with trained_once():
        return train_loop.build(config, workdir, jax.devices()[:1])


def leaves(tree):
    return dict(zip(optimizer.paths(tree), map(np.asarray, jax.tree.leaves(jax.device_get(tree)))))


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """{stage: (run, its parameters, EMA and codebook before and after)}"""
    folder, before = tmp_path_factory.mktemp('chain'), ''
    found = {}
    for stage in STAGES:
        run = build(stage, folder / stage, before)
        checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=1)
        _, start = train_loop.start_state(run, checkpoints)
        checkpoints.close()
        kept = ('params', 'ema', 'codebook')
        start = {name: leaves(getattr(start, name)) for name in kept}
        end = train_loop.train(run)
        found[stage] = run, start, {name: leaves(getattr(end, name)) for name in kept}
        before = run.workdir
    return found


@pytest.mark.parametrize('earlier, later', [STAGES[:2], STAGES[1:]])
def test_a_stage_starts_from_the_end_of_the_previous_one(chain, earlier, later):
    (before, _, end), (run, start, after) = chain[earlier], chain[later]
    for name, tree in end.items():
        for path, value in tree.items():
            assert start[name][path].tobytes() == value.tobytes(), (name, path)
    assert run.tokenizer.checksum == before.tokenizer.checksum
    moved = [p for p, x in start['params'].items() if (x != after['params'][p]).any()]
    assert len(moved) > len(start['params']) / 2


def test_alignment_trains_only_the_connector(chain):
    _, start, end = chain['alignment']
    moved = {p for p, x in start['params'].items() if (x != end['params'][p]).any()}
    assert moved and all(path.startswith('connector/') for path in moved)


@pytest.mark.parametrize('offload', [(), ('ema',)])
def test_frozen_parameters_are_the_ema_of_the_previous_stage(chain, tmp_path, offload):
    """Targets come from the EMA, which would drift if the weights differed from it."""
    before, _, end = chain['joint']
    changes = {'optimizer.freeze': (r'^encoder/',), 'offload': offload}
    run = build('continued', tmp_path, before.workdir, **changes)
    after = train_loop.train(run)
    frozen = [path for path in end['ema'] if path.startswith('encoder/')]
    assert any((end['params'][path] != end['ema'][path]).any() for path in frozen)
    for tree in map(leaves, (after.params, after.ema)):
        for path in frozen:
            assert tree[path].tobytes() == end['ema'][path].tobytes(), path
        assert any((tree[path] != end['ema'][path]).any() for path in tree)


def test_alignment_has_no_capacity_for_generation(chain):
    run, *_ = chain['alignment']
    batch = run.batches.batch(0)
    assert batch['pixels'].shape[1] == batch['cells'].shape[1] == 0


def test_weights_of_another_shape_are_an_error(chain, tmp_path):
    run = build('joint', tmp_path, chain['alignment'][0].workdir, **{'model.encoder.width': 64})
    with pytest.raises(UserError, match=r'initialise_from=.*encoder/.*expected'):
        train_loop.train(run)


def test_a_folder_without_weights_is_an_error(tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='empty'):
        train_loop.train(build('joint', tmp_path / 'run', tmp_path / 'empty'))


def test_a_stage_without_the_previous_one_logs_a_warning(caplog):
    with caplog.at_level('WARNING', logger='absl'):
        checks.warn_of_new_weights(base.get_config())
        checks.warn_of_new_weights(scenes.get_config('autoencoder'))
        assert not caplog.text
        checks.warn_of_new_weights(scenes.get_config('vae'))
        assert "model.space='vae'" in caplog.text and 'ema.warmup' in caplog.text
        assert 'data_init_steps' not in caplog.text
        checks.warn_of_new_weights(stages.get_config('continued'))
    assert 'quantizer.data_init_steps=()' in caplog.text
    assert caplog.text.count('initialise_from is empty') == 4


def test_an_unfinished_source_run_logs_a_warning(chain, tmp_path, caplog):
    """A run that was stopped or is still training has checkpoints too."""
    alignment, early = chain['alignment'][0].workdir, tmp_path / 'early'
    shutil.copytree(alignment, early)
    text = (early / 'config.json').read_text()
    (early / 'config.json').write_text(text.replace('"steps": 2,', '"steps": 5,'))
    run = build('joint', tmp_path / 'joint', early)
    checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=1)
    with caplog.at_level('INFO', logger='absl'):
        train_loop.start_state(run, checkpoints)
        checkpoints.close()
        checks.warn_of_source_run(run.config, alignment, 2)
    assert f'from {early} at step 2' in caplog.text
    assert f'{early} is at step 2 of 5' in caplog.text
    assert f'{alignment} is at' not in caplog.text
    assert 'is replaced' not in caplog.text, 'alignment has no codebook'


def test_other_data_in_a_workdir_logs_a_warning(chain, tmp_path, caplog):
    run = chain['joint'][0]
    with caplog.at_level('WARNING', logger='absl'):
        checks.warn_of_other_data(run.data, run.workdir)
        checks.warn_of_other_data(run.data, tmp_path)
        assert not caplog.text
        checks.warn_of_other_data('3 examples', run.workdir)
    assert f'the data is now 3 examples and was {run.data}' in caplog.text


def test_replacing_a_trained_codebook_logs_a_warning(chain, caplog):
    before = chain['joint'][0].workdir
    with caplog.at_level('WARNING', logger='absl'):
        checks.warn_of_source_run(stages.get_config('continued'), before, 2)
        config = base.get_config()
        config.initialise_new = ('^codebook$',)
        checks.warn_of_source_run(config, before, 2)
        assert not caplog.text
        checks.warn_of_source_run(base.get_config(), before, 2)
    assert f'codebook of {before} is replaced at steps 0' in caplog.text


def test_discarding_what_a_run_has_learned_of_images_logs_a_warning(chain, caplog):
    """As the recipe of a stage does with weights that have none: alignment's are not trained."""
    config = paper.get_config('joint/0.6B')
    for stage, warned in (('alignment', False), ('joint', True)):
        before = chain[stage][0].workdir
        with caplog.at_level('WARNING', logger='absl'):
            checks.warn_of_source_run(config, before, 2)
        wanted = (
            f'{before} has learned to generate images, which is discarded by initialise_new and '
            'initialise_as: to go on from it, set initialise_new=() and initialise_as=()'
        )
        assert (wanted in caplog.text) == warned
