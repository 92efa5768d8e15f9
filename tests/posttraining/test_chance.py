"""What is random in a rollout: new in each rollout, step and token, and a function of the seed."""

import contextlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from configs.posttraining import grpo
from rf_jax.data import source_list
from rf_jax.data.records import Record
from rf_jax.generation import kv_cache
from rf_jax.posttraining import asking, collector, episodes, rollout

KEYS = jax.random.split(jax.random.key(0), 3)


class Images:
    """A source of a hundred grey images, each with a caption and a question of its own."""

    def record(self, i):
        questions = ((f'is it {i}?', f'{i}'),)
        return Record(64, 64, (f'caption {i}',), questions=questions)

    def image(self, i):
        return np.full((64, 64, 3), i, np.uint8)


def run_of(seed=0, prompts='captions'):
    config = grpo.get_config('both')
    config.seed, config.grpo.prompts = seed, prompts
    source, scenes = Images(), source_list.build('scenes:aligned/48/count=4', 10**6)
    pools = SimpleNamespace(count=lambda task: 100, example=lambda task, number: (source, number))
    return SimpleNamespace(config=config, batches=SimpleNamespace(pools=pools, sources=scenes))


def shown(run, number):
    return [int(each.image[0, 0, 0]) for each in asking.sources_of(run, number, 8)]


def questions(run, number):
    return [each.text for each in asking.questions_of(run, number, 8)[1]]


def prompts(run, number):
    return [each.text for each in asking.prompts_of(run, number, 8)]


def seeds(run, number):
    return episodes._seeds(run.config, 'text', number, 8).tolist()


@pytest.mark.parametrize(
    'of, asked',
    [
        (shown, 'captions'),
        (questions, 'captions'),
        (prompts, 'captions'),
        (prompts, 'seen'),
        (prompts, 'all'),
        (seeds, 'captions'),
    ],
)
def test_each_rollout_and_seed_has_its_own(of, asked):
    run = run_of(prompts=asked)
    found = [of(run, 3), of(run, 4), of(run_of(1, asked), 3)]
    assert found[0] == of(run, 3)
    assert len({tuple(each) for each in found}) == 3 and len(set(found[0])) > 1


def test_texts_and_images_have_other_seeds():
    config = base.get_config()
    assert (episodes._seeds(config, 'text', 0, 8) != episodes._seeds(config, 'image', 0, 8)).all()


def test_each_update_of_a_rollout_has_its_own_rows():
    """Two updates of four rows, of which this process has the first and the third."""
    collected = []

    def collect(params, number):
        collected.append(number)
        return {'row': 100 * number + np.arange(8)}, {}

    config = base.get_config()
    with config.unlocked():
        config.grpo = grpo.fields()
    config.grpo.updates, config.data.batch_size = 2, 4
    run = SimpleNamespace(
        goodput=SimpleNamespace(phase=lambda name: contextlib.nullcontext()),
        batches=SimpleNamespace(rows=np.array([0, 2])),
    )
    metrics = SimpleNamespace(writer=SimpleNamespace(scalars=lambda *_: None))
    feed = SimpleNamespace(config=config, collect=collect)
    next_batch = collector.Collector.__call__(feed, run, 2, metrics)
    found = [next_batch(SimpleNamespace(params=None))['row'].tolist() for _ in range(4)]
    assert found == [[200, 202], [204, 206], [400, 402], [404, 406]]
    assert collected == [2, 4]


@pytest.fixture
def flat(monkeypatch):
    """A model without weights: each token and patch stands for itself, all words are as likely."""
    monkeypatch.setattr(kv_cache, 'after', lambda model, params, row, cache, x, lengths: x)
    monkeypatch.setattr(kv_cache, 'one', lambda *given: (given[5], None))
    monkeypatch.setattr(kv_cache, 'prefill', lambda *given, empty: (given[3], None))
    bound = SimpleNamespace(
        embed_patches=lambda z, t, cells: z,
        predict=lambda x: x,
        embed_text=lambda tokens: jnp.zeros((*tokens.shape, 4)),
        embed_vision=lambda batch: jnp.zeros((len(batch['text_tokens']), 0, 4)),
        text_logits=lambda x: jnp.zeros((*x.shape[:2], 1000)),
    )
    return SimpleNamespace(bind=lambda variables: bound, flow_channels=6)


def test_each_stochastic_step_and_image_has_its_own_noise(flat):
    """The noise itself, of a step that forgets where it was."""

    def forget(x, z, t, t_next, level, noise_scale, floor):
        return jnp.zeros_like(z), jnp.ones(z.shape[:2])

    real = np.array([[1, 1], [1, 0], [1, 1]], np.float32)  # the second image has one patch
    row = {
        'pixel_counts': jnp.asarray(real.sum(1, keepdims=True), jnp.int32),
        'pixels': jnp.zeros((3, 2, 12), jnp.uint8),
        'pixel_weight': jnp.asarray(real),
        'pixel_cells': jnp.zeros((3, 2, 2), jnp.int32),
    }
    policy = rollout.FlowPolicy(4, 0, 3, forget, 1.0)
    z, _, _, log_probs = rollout._flow(flat, base.get_config(), policy, None, row, None, KEYS)
    noise = np.asarray(z)
    assert noise.shape == (3, 4, 2, 6)
    assert len(np.unique(noise)) == noise.size
    density = -0.5 * np.mean(noise[:, 1:] ** 2, -1) - 0.5 * np.log(2 * np.pi)
    expected = (density * real[:, None]).sum(2) / real.sum(1)[:, None]
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5)


def test_each_token_and_text_has_its_own_draw(flat):
    batch = {'text_tokens': jnp.zeros((3, 16), jnp.int32)}
    lengths = jnp.full(3, 4)
    tokens, again = (
        np.asarray(rollout.texts(flat, 12, (-1,), None, batch, lengths, KEYS).tokens)
        for _ in range(2)
    )
    np.testing.assert_array_equal(tokens, again)
    assert len(np.unique(tokens)) > 30  # of 36, some by chance the same
