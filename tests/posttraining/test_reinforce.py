"""GRPO end to end on a tiny model: exact, resumable, the same on any mesh; it finds an optimum."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from shrink import shrink
from tiny_grpo import begins_with_a, bright, built, code_five, config_of, fed, moved, trained

from configs import base
from configs.posttraining import grpo, thoughts, unified_grpo
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation.sampler import Sampler
from rf_jax.posttraining import collector, reference
from rf_jax.runtime.errors import UserError
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow


# Few values, only the biases of the head are trained, and with a large floor of 1 - t some noise of
# each step is left in the image: so the reward of a step is seen through chance.
SMALL = {
    'data.patch_size': 8,
    'data.sizes': ((32, 1.0),),
    'data.batch_size': 32,
    'flow.t_eps': 0.9,
    'optimizer.freeze': (r'^(?!patch_out/.*bias)',),
}


@pytest.mark.parametrize(
    'name, episode, reward, steps, changes',
    [
        ('representation', 'generate', code_five, 15, {}),
        ('text', 'answer', begins_with_a, 40, {'data.sources': 'scenes:aligned/48/count=50'}),
        ('flow', 'generate', bright, 60, {**SMALL, 'optimizer.learning_rate': 0.15}),
    ],
)
def test_each_policy_finds_the_optimum_of_a_bandit(tmp_path, name, episode, reward, steps, changes):
    own = {'grpo.policies': (name,), 'grpo.episode': episode, 'steps': steps}
    _, means = trained(tmp_path, reward, own | {'checkpoint.every': 1000} | changes)
    assert means[0] < 0.6
    assert means[-5:].mean() > 0.9, means.round(2)


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """A run with all policies at its start, and its first collection."""
    changes = {'grpo.policies': ('text', 'representation', 'flow'), 'grpo.episode': 'both'}
    changes |= {'grpo.kl': {'text': 0.1, 'representation': 0.1, 'flow': 0.1}}
    run = built(tmp_path_factory.mktemp('run'), changes)
    state = moved(run.initialise())
    state = state.replace(ema=jax.tree.map(lambda x: x.copy(), state.params))
    feed = fed(run, state, bright)
    return run, state, feed, *feed.collect(state.params, 0)


def test_log_probabilities_of_a_rollout_are_those_of_training(started):
    *_, rows, seen = started
    assert seen['rollout/log_prob_error'] < 1e-4
    for name in ('text', 'representation', 'flow'):
        counted = rows[feed_weight(name)] > 0
        assert counted.any() and np.isfinite(rows[f'{name}_old']).all()
    assert (rows['representation_old'][rows['representation_weight'] > 0] < 0).all()


def feed_weight(name):
    return {'flow': 'pixel_weight'}.get(name, f'{name}_weight')


def test_the_first_ratio_is_one_and_the_first_kl_zero(started):
    run, state, _, rows, _ = started
    copy = jax.tree.map(lambda x: x.copy(), state)
    _, metrics = run.train_step(copy, run.put(rows))
    for name in ('text', 'representation', 'flow'):
        assert float(metrics[f'ratio_{name}']) == pytest.approx(1, abs=1e-4)
        assert float(metrics[f'kl_{name}']) == pytest.approx(0, abs=1e-6)
        assert float(metrics[f'clipped_{name}']) == 0
    assert float(metrics['gradient_norm']) > 0
    assert float(metrics['entropy_representation']) > 0.1


def test_without_an_advantage_the_gradient_is_exactly_zero(tmp_path):
    run = built(tmp_path, {'grpo.policies': ('representation', 'flow')})
    state = run.initialise()
    rows, seen = fed(run, state, lambda *_: 1.0).collect(state.params, 0)
    assert seen['reward/groups_all_alike'] == 1
    _, metrics = run.train_step(state, run.put(rows))
    assert float(metrics['gradient_norm']) == 0


def test_groups_without_rewards_do_not_count(tmp_path):
    run = built(tmp_path, {'grpo.policies': ('representation', 'flow')})
    state = run.initialise()
    calls = []

    def fails_once(prompt, source, sample):
        calls.append(prompt)
        return float('nan') if len(calls) == 1 else code_five(prompt, source, sample)

    rows, seen = fed(run, state, fails_once).collect(state.params, 0)
    assert seen['rollout/groups_skipped'] == 1
    assert not rows['representation_weight'][:8].any() and rows['representation_weight'][8:].any()
    assert not rows['pixel_weight'][:8].any()
    _, metrics = run.train_step(state, run.put(rows))
    assert np.isfinite(float(metrics['loss']))


def test_rewards_that_always_fail_end_the_run_in_one_line(tmp_path):
    run = built(tmp_path)
    with pytest.raises(UserError, match=r"no group of this rollout .*\{'own': 2\}"):
        fed(run, run.initialise(), lambda *_: float('nan')).collect(run.initialise().params, 0)


class Crash(Exception):
    pass


def test_a_run_that_is_killed_in_a_rollout_or_between_its_updates_ends_bit_equal(tmp_path):
    changes = {'grpo.updates': 2, 'steps': 4, 'checkpoint.every': 2, 'log.samples_every': 1}

    def crash(at):
        def hook(number, *_):
            if number == at:
                raise Crash

        return hook

    def killed(folder, reward, hook=None):
        run = built(folder, changes)
        feed = fed(run, run.initialise(), reward)
        return train_loop.train(run, hook, feed=feed, unit=2)

    whole = killed(tmp_path / 'whole', code_five)
    with pytest.raises(Crash):
        killed(tmp_path / 'cut', code_five, crash(3))  # one of two updates is done
    again = killed(tmp_path / 'cut', code_five)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again)):
        np.testing.assert_array_equal(a, b)


def test_a_signal_is_obeyed_where_the_run_can_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(train_loop.distributed, 'agreed', lambda local, common: True)
    run = built(tmp_path, {'grpo.updates': 2, 'steps': 4})
    state = train_loop.train(run, feed=fed(run, run.initialise(), code_five), unit=2)
    assert run.stopped and int(state.step) == 2


def test_eight_devices_agree_with_one(tmp_path):
    changes = {'grpo.policies': ('representation', 'flow')}
    losses = {}
    for devices in (1, 8):
        run = built(tmp_path / str(devices), changes | {'mesh.fsdp': devices}, devices)
        state, losses[devices] = run.initialise(), []
        feed = fed(run, state, code_five)
        for number in range(2):
            rows, _ = feed.collect(state.params, number)
            state, metrics = run.train_step(state, run.put(rows))
            losses[devices].append([float(metrics[n]) for n in ('loss', 'gradient_norm')])
    np.testing.assert_allclose(losses[8], losses[1], rtol=1e-3, atol=1e-6)
    assert losses[1][0][1] > 0


def test_a_reinforced_checkpoint_is_a_run_like_any_other(tmp_path):
    trained(tmp_path, code_five, {'steps': 2})
    sampler = Sampler.load(tmp_path)
    assert sampler.step == 2
    (image,) = sampler.generate('a red apple', steps=2)
    assert image.image.shape == (64, 64, 3)
    average = sampler.placement.by_layer(reference_of(tmp_path, {}))
    jax.tree.map(np.testing.assert_array_equal, average, sampler.params)


def reference_of(folder, changes):
    run = built(folder.parent / 'other', changes | {'initialise_from': str(folder)})
    return reference.load(run)


def test_all_hosts_read_the_reference_of_the_same_step(tmp_path, monkeypatch):
    """The newest that the first process finds, although that run may have saved another since."""
    for step in (4, 6):
        (tmp_path / 'run' / 'checkpoints' / str(step)).mkdir(parents=True)
    config = config_of({'initialise_from': str(tmp_path / 'run')})
    monkeypatch.setattr(reference.distributed, 'broadcast', lambda make: b'4')
    read = []

    def restored(directory, step, only, place):
        read.append(step)
        return step, {only: {}}

    monkeypatch.setattr(reference.checkpoint, 'restore_placed', restored)
    reference.load(SimpleNamespace(config=config, abstract=SimpleNamespace(ema={})))
    config.initialise_from += '@6'
    reference.load(SimpleNamespace(config=config, abstract=SimpleNamespace(ema={})))
    assert read == [4, 6]


def test_a_reference_of_another_shape_is_one_clear_error(tmp_path):
    trained(tmp_path / 'run', code_five, {'steps': 1})
    with pytest.raises(UserError, match=r'^initialise_from=.*another model .*identity/table'):
        reference_of(tmp_path / 'run', {'model.representation.codebook_size': 16})


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'grpo.group_size': 1}, r'grpo\.group_size=1: a group of one'),
        ({'grpo.group_size': 5}, r'16 rows are not a multiple of 5'),
        ({'grpo.episode': 'paint'}, r"grpo\.episode.*'paint'.*generate"),
        ({'grpo.policies': ('text',)}, r"grpo\.policies.*'text'.*representation"),
        ({'grpo.policies': ()}, r'grpo\.policies is empty'),
        ({'grpo.rewards': ('judge',)}, r'grpo\.rewards=.*expected pairs'),
        ({'grpo.rewards': (('judge', float('nan')),)}, r'grpo\.rewards=.*expected pairs'),
        ({'grpo.rewards': (('own', 1.0), ('own', 2.0))}, r'grpo\.rewards=.*each name once'),
        ({'grpo.rewards': (('words', 1.0),)}, r"'words' has nothing to reward.*'generate'.*judge"),
        (
            {
                'grpo.rewards': (('own', 1.0), ('similarity', 0.0)),
                'grpo.episode': 'answer',
                'grpo.policies': ('text',),
            },
            r"'similarity' has nothing to reward.*'answer'.*exact_answer, words",
        ),
        (
            {'model.representation.kind': 'continuous'},
            r"model\.representation\.kind='continuous': GRPO needs discrete tokens",
        ),
        ({'model.representation.kind': 'none'}, r"kind='none': GRPO needs discrete tokens"),
        ({'grpo.prompts': 'mine'}, r"grpo\.prompts.*'mine'.*captions"),
        ({'grpo.flow.sampler': 'euler'}, r"grpo\.flow\.sampler.*'euler'.*marginal"),
        ({'grpo.std': 'none'}, r"grpo\.std.*'none'.*group"),
        ({'grpo.flow.stochastic': (0, 4)}, r'the last step has no noise'),
        ({'grpo.updates': 3, 'checkpoint.every': 4}, r'not a multiple of grpo\.updates=3'),
        (
            {'grpo.updates': 2, 'checkpoint.keep_period': 5},
            r'keep_period=5 is not a multiple of grpo\.updates=2',
        ),
        ({'grpo.updates': 2, 'steps': 3}, r'steps=3 is not a multiple of grpo\.updates=2'),
        ({'grpo.updates': 0}, r'grpo\.updates=0: expected a whole number of at least 1'),
        ({'grpo.flow.level': 0.0}, r'grpo\.flow\.level=0\.0: expected a finite number above 0'),
        (
            {'grpo.flow.level': 1.3, 'grpo.flow.sampler': 'preserving'},
            r"grpo\.flow\.level=1\.3: expected at most 1 .*'preserving'",
        ),
        ({'grpo.clip.text': -0.2}, r'grpo\.clip\.text=-0\.2: expected a finite number above 0'),
        ({'grpo.kl.flow': float('nan')}, r'grpo\.kl\.flow=nan: expected a finite number of at'),
        ({'grpo.flow.stochastic': (1,)}, r'expected \(first, last\)'),
        (
            {'grpo.policies': ('flow',), 'grpo.flow.stochastic': (0, 3)},
            r'needs data\.capacity\.pixels=48 and data\.capacity\.pixel_images=3',
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        collector.check(config_of({'grpo.group_size': 8} | changes))


def test_a_text_that_no_row_can_hold_is_refused():
    changes = {'grpo.policies': ('text',), 'grpo.episode': 'answer', 'grpo.text_tokens': 30}
    with pytest.raises(UserError, match=r'grpo\.text_tokens=30 .* exceed data\.capacity\.text=32'):
        collector.check_text(config_of(changes), SentencePieceTokenizer)


@pytest.mark.parametrize(
    'config',
    [
        *(grpo.get_config(name) for name in grpo.POLICIES),
        *(unified_grpo.get_config(name) for name in unified_grpo.STAGES if name != 'long_caption'),
        *(thoughts.get_config(name) for name in thoughts.POLICIES),
    ],
    ids=lambda config: config.grpo.episode + '-' + '-'.join(config.grpo.policies),
)
def test_the_configs_fit_together_as_they_are(config):
    collector.check(config)
    collector.check_text(config, SentencePieceTokenizer)


def test_a_config_without_grpo_names_the_other_command():
    with pytest.raises(UserError, match=r'no field grpo.*rf_jax\.train'):
        collector.check(shrink(base.get_config()))


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            {'grpo.prompts': 'seen'},
            r"has no scenes, needed by grpo\.prompts='seen' \(expected 'captions'",
        ),
        ({'grpo.rewards': (('judge', 1.0),)}, r"no scenes, needed by the reward 'judge'"),
        (
            {
                'grpo.rewards': (('recovered', 1.0),),
                'grpo.episode': 'describe',
                'grpo.policies': ('text',),
            },
            r"no scenes, needed by the reward 'recovered'",
        ),
    ],
)
def test_what_only_scenes_have_is_refused_for_other_images(tmp_path, changes, message):
    run = built(tmp_path, changes)
    with pytest.raises(UserError, match=message):
        fed(run, run.initialise(), bright)


def test_answers_need_questions(tmp_path):
    run = built(tmp_path, {'grpo.episode': 'answer', 'grpo.policies': ('text',)})
    with pytest.raises(UserError, match=r"grpo\.episode='answer': 100 examples .* no question"):
        fed(run, run.initialise(), bright).collect(run.initialise().params, 0)


def test_prompts_of_scenes_need_scenes(tmp_path):
    run = built(tmp_path, {'grpo.prompts': 'seen'})
    with pytest.raises(UserError, match=r"no scenes, needed by grpo\.prompts='seen'"):
        fed(run, run.initialise(), bright).collect(run.initialise().params, 0)
