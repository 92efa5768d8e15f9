"""Each arm of the study differs only in what its name says, and can be trained."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import scenes, scenes_fine
from rf_jax.data import captions, pipeline, source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.models import flops, unified
from rf_jax.runtime import checkpoint_files
from rf_jax.training import checks, initial_weights, optimizer, state, step, weight_sources

pytestmark = pytest.mark.slow

BOTH = scenes.STAGES | scenes.ARMS
SEES, DRAWS = ('data.tasks.image_to_text',), ('data.tasks.text_to_image',)
ROOM = tuple(f'data.capacity.{name}' for name in ('representation', 'pixels', 'pixel_images'))
READING = ('data.capacity.text', 'data.capacity.vision', 'data.capacity.vision_images')
SCRATCH = ('initialise_new', 'initialise_as', 'ema.warmup')
KIND, FREEZE = ('model.representation.kind', 'data.representation_tokens'), 'optimizer.freeze'
# Fields in which each arm may differ from `pixel_rf`, apart from its stages.
MAY = {
    'pixel': (*KIND, ROOM[0]),
    'pixel_rf': (),
    'vae': (*KIND, ROOM[0], 'model.space', FREEZE),
    'vae_rf': ('model.space', FREEZE),
    'repa': (*KIND, ROOM[0]),
    'continuous': KIND,
    'understanding': (*DRAWS, *ROOM, *KIND, 'losses.flow', 'losses.representation'),
    'generation': (*SEES, *READING, FREEZE),
    'frozen': (FREEZE,),
    'codes_32': ('model.representation.codebook_size',),
    'codes_128': ('model.representation.codebook_size',),
    'quantizer_printed': ('model.representation.quantizer.mode',),
    'quantizer_sinkhorn': ('model.representation.quantizer.mode',),
    'pool_1': ('model.representation.pool', ROOM[0]),
    'split_full': ('model.backbone.split', 'initialise_as'),
    'split_none': ('model.backbone.split',),
    'scratch_pixel': (*KIND, ROOM[0], *SCRATCH),
    'scratch_pixel_rf': SCRATCH,
}  # fmt: skip


@pytest.fixture(scope='module')
def tokenizer():
    found = source_list.build('scenes:aligned/48/count=300', 10**8)
    return SentencePieceTokenizer.train(captions.corpus(found), 512)


@pytest.mark.parametrize('name', scenes.ARMS)
def test_an_arm_changes_only_what_its_name_says(name):
    right, found = (checks.flatten(scenes.get_config(n).to_dict()) for n in ('pixel_rf', name))
    changed = {field for field in right if right[field] != found[field]}
    assert changed <= set(MAY[name]), changed - set(MAY[name])
    assert bool(changed) or name == 'pixel_rf'


@pytest.mark.parametrize('name', ('first', 'pixel', 'pixel_rf', 'pool_1'))
def test_finer_patches_fill_their_rows(name, tokenizer):
    config = scenes_fine.get_config(name)
    checks.check(config)
    found = source_list.build(f'{config.data.sources}/count=300', config.data.max_pixels)
    batches = pipeline.Batches(config, found, tokenizer)
    assert (batches.batch(0)['segment'] > 0).mean() > 0.75
    assert not batches.counts, 'nothing is truncated'


@pytest.mark.parametrize('name', BOTH)
def test_rows_are_full_and_the_model_can_be_built(name, tokenizer):
    config = scenes.get_config(name)
    checks.check(config)
    found = source_list.build(f'{config.data.sources}/count=300', config.data.max_pixels)
    batches = pipeline.Batches(config, found, tokenizer)
    batch = batches.batch(0)
    assert not batches.counts, 'no caption is truncated'
    drawn = config.data.tasks.text_to_image > 0
    images = batch['pixel_counts'] > 0
    assert (images.size > 0 and images.all()) == drawn
    if config.losses.reconstruction == 0:  # it has no text
        assert (batch['segment'] > 0).mean() > (0.6 if drawn else 0.4)
    model = unified.build(config, tokenizer.size)
    assert model.flow_channels == (
        16 if config.model.space == 'vae' else 3 * config.data.patch_size**2
    )
    assert np.isfinite(flops.train_step(config, tokenizer.size))
    optimizer_of = partial(optimizer.build, config.optimizer, steps=config.steps)
    now = shapes(name, tokenizer.size)
    after, metrics = jax.eval_shape(step.build(config, model, optimizer_of), now, batch)
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, now) and 'loss' in metrics


def shapes(name: str, vocabulary: int) -> dict:
    """Parameters and codebook of a run as shapes, {'params': ..., 'codebook': ...}."""
    config = scenes.get_config(name)
    model = unified.build(config, vocabulary)

    def new():
        optimizer_of = partial(optimizer.build, config.optimizer, steps=config.steps)
        codes, width = config.model.representation.codebook_size, config.model.encoder.width
        return state.initialise(model, optimizer_of, codes, width, 0)

    return jax.eval_shape(new)


@pytest.mark.parametrize('name', [n for n, arm in scenes.ARMS.items() if arm.needs])
def test_an_arm_takes_its_initial_weights_from_its_stages(name):
    """Only the weights of input and output for generation are initialised randomly."""
    config, vocabulary = scenes.get_config(name), 300
    stages = [
        weight_sources.Run(Path(stage), 1, held_by(shapes(stage, vocabulary)))
        for stage in scenes.ARMS[name].needs
    ]
    own = shapes(name, vocabulary)
    found = initial_weights.plan(own, stages, config)
    for path in optimizer.paths(own.params):
        drawing = path.startswith(('representation_', 'patch_'))
        assert (f'params/{path}' in found) != drawing, path
    assert 'codebook' not in found, 'initialised from data'


def held_by(saved: state.State) -> dict:
    return checkpoint_files.flatten({part: getattr(saved, part) for part in weight_sources.TAKEN})
