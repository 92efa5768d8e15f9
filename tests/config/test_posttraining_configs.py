"""configs/posttraining: what the arms hold fixed."""

import json
from collections import Counter

import jax
import pytest
from shrink import tiny_run

from configs import scenes
from configs.posttraining import multi_representation, own
from rf_jax.data import captions, layout, source_list
from rf_jax.data.pipeline import Batches
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.posttraining import collector, policy, reference
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, train_loop

ARMS = multi_representation.ARMS


@pytest.fixture(scope='module')
def source():
    return source_list.build('scenes:aligned/48/count=400', 10**6)[0]


@pytest.fixture(scope='module')
def tokenizer(source):
    """As of the study: it has not read the instructions."""
    return SentencePieceTokenizer.train(captions.corpus([source]), 512)


@pytest.mark.parametrize('arm', ARMS)
def test_every_arm_has_as_many_questions_a_step_and_as_many_maps_of_each_kind(
    arm, source, tokenizer
):
    config = multi_representation.get_config(arm)
    batches = Batches(config, [source], tokenizer)
    plan, counts = batches.plan, Counter()
    for step in range(plan.steps_per_window):
        counts.update(each.task for row in plan.rows(step) for each in row)
    tasks = {'image_to_text', 'text_to_image', *(f'image_to_{name}' for name in ARMS[arm])}
    assert set(counts) == tasks
    for task in tasks:
        assert counts[task] / plan.steps_per_window == pytest.approx(16, rel=0.02)
    assert not batches.counts['text_truncated']
    capacity = [config.data.capacity[name] for name in layout.SIZES]
    assert capacity[5] == 1 + len(ARMS[arm]) and capacity[4] == 1 + 2 * len(ARMS[arm])


def test_the_losses_of_a_question_count_as_much_in_every_arm(source, tokenizer):
    """The text loss is a mean over questions and maps: its weight is larger by their share."""
    tokens, weights = {}, {}
    for arm in ('understanding', 'full'):
        config = multi_representation.get_config(arm)
        batches = Batches(config, [source], tokenizer, rows=range(8))
        tokens[arm] = sum(float(batches.batch(step)['text_weight'].sum()) for step in range(8))
        weights[arm] = config.losses.text
    assert weights['understanding'] == 1
    assert weights['full'] == pytest.approx(tokens['full'] / tokens['understanding'], rel=0.1)


def test_arms_differ_from_the_study_in_data_losses_and_schedule_only():
    """So all have the parameters of the study's pixel_rf."""
    right = checks.flatten(scenes.get_config('pixel_rf').to_dict())
    for arm in ARMS:
        found = checks.flatten(multi_representation.get_config(arm).to_dict())
        changed = {name for name in right if right[name] != found[name]}
        allowed = ('data.', 'losses.', 'optimizer.', 'ema.', 'steps', 'initialise_')
        rest = {name for name in changed if not name.startswith(allowed)}
        assert rest == {'model.representation.quantizer.data_init_steps'}


@pytest.mark.nightly
@pytest.mark.slow
def test_any_run_can_be_reinforced(tmp_path):
    """With its own model and data; fields that it was trained without have their defaults."""
    run = tiny_run(tmp_path / 'mine', {'data.capacity.pixels': 32, 'data.capacity.pixel_images': 2})
    train_loop.train(run)
    path = tmp_path / 'mine' / 'config.json'
    values = json.loads(path.read_text())
    del values['validation'], values['data']['workers']
    path.write_text(json.dumps(values))
    step = run.config.steps
    assert own.get_config(f'{tmp_path}/mine@{step}').initialise_from == f'{tmp_path}/mine@{step}'
    config = own.get_config(f'{tmp_path}/mine,both')
    before = checks.flatten(run.config.to_dict())
    changed = {k for k, v in checks.flatten(config.to_dict()).items() if v != before.get(k, v)}
    assert not {k for k in changed if k.startswith(('model.', 'tokenizer.', 'data.s'))} - {
        'model.representation.quantizer.data_init_steps'
    }
    config.update_from_flattened_dict(
        {'steps': 2, 'data.batch_size': 4, 'grpo.group_size': 2, 'grpo.flow.steps': 3,
         'grpo.flow.stochastic': (0, 2), 'grpo.rewards': (('brightness', 1.0),)}
    )  # fmt: skip
    bright = {'brightness': lambda prompt, source, sample: sample.image.mean() / 255}
    collector.check(config)
    built = train_loop.build(config, tmp_path / 'run', jax.devices()[:1], policy.objective)
    feed = collector.Collector(built, reference.load(built), bright)
    state = train_loop.train(built, feed=feed)
    assert int(state.step) == 2 and int(state.skipped) == 0
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    assert 'reward/brightness' in lines


def test_latents_do_not_move_while_a_run_that_generates_them_is_reinforced(tmp_path):
    config = scenes.get_config('vae_rf')
    (tmp_path / 'config.json').write_text(config.to_json_best_effort())
    checks.check(own.get_config(str(tmp_path)))


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('', 'give a run: --config=configs/posttraining/own.py:runs/emoji'),
        ('runs/none', r'runs/none/config\.json cannot be read'),
        ('runs/none,all', r"own\.py:policies='all' is not known"),
    ],
)
def test_a_run_that_cannot_be_reinforced(given, message):
    with pytest.raises(UserError, match=message):
        own.get_config(given)
