"""GRPO by hand: advantages, ratios, clipping, KL, and no gradient without an advantage."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs.posttraining import grpo
from rf_jax.posttraining import policy
from rf_jax.training import flow, losses


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def config(policies, **changes):
    c = grpo.get_config('both')
    c.grpo.policies = policies
    c.grpo.update_from_flattened_dict(changes)
    return c


def whole(values):
    """Logits that are given."""
    return SimpleNamespace(whole=lambda: values)


def test_advantages_are_relative_to_the_group():
    rewards = np.array([[1.0, 0, 0, 1], [3, 3, 3, 3], [0, 0, 0, 10]])
    found = policy.advantages(rewards, 'group')
    np.testing.assert_allclose(found[0], np.array([1, -1, -1, 1]) * 0.5 / 0.5001)
    assert not found[1].any()
    np.testing.assert_allclose(found[2, 3], 7.5 / (rewards[2].std() + 1e-4))
    spread = rewards.std() + 1e-4
    np.testing.assert_allclose(
        policy.advantages(rewards, 'global'), (rewards - rewards.mean(1)[:, None]) / spread
    )


def test_a_group_with_a_missing_reward_has_no_advantage_and_changes_no_other():
    rewards = np.array([[1.0, 0, 0, 1], [3, np.nan, 1, 2]])
    for std in policy.STDS:
        found = policy.advantages(rewards, std)
        assert not found[1].any()
        np.testing.assert_array_equal(found[:1], policy.advantages(rewards[:1], std))


def test_without_any_rewards_there_are_no_advantages():
    for std in policy.STDS:
        assert not policy.advantages(np.full((2, 3), np.nan), std).any()


def test_advantages_are_bounded():
    rewards = np.zeros((1, 64))
    rewards[0, 0] = 1
    assert policy.advantages(rewards, 'group').max() == policy.MOST


def token_batch():
    logits, old = normals(2, 3, 5), normals(2, 3, seed=1) * 0.3 - 1.5
    codes = np.array([[0, 3, -1], [4, 1, 2]])
    batch = {
        'code_targets': jnp.asarray(codes),
        'representation_weight': jnp.asarray((codes >= 0).astype(np.float32)),
        'representation_advantage': jnp.asarray(normals(2, 3, seed=2)),
        'representation_old': jnp.asarray(old),
        'representation_reference': jax.nn.log_softmax(normals(2, 3, 5, seed=3), -1),
    }
    return logits, batch


def value_of(objective, name, outputs, batch):
    counts = losses.counts(objective.terms, batch)
    return losses.total(objective.terms, objective.weights, counts, outputs, batch)[1][name]


def test_the_clipped_surrogate_the_exact_kl_and_the_entropy_of_tokens():
    logits, batch = token_batch()
    c = config(('representation',), **{'kl.representation': 0.1, 'clip.representation': 0.2})
    objective = policy.objective(c, None)
    outputs = {'representation_logits': whole(jnp.asarray(logits))}
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = {'policy': [], 'kl': [], 'entropy': [], 'clipped': [], 'ratio': []}
    for row, place in [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]:
        code = batch['code_targets'][row, place]
        ratio = p[row, place, code] / np.exp(batch['representation_old'][row, place])
        a = batch['representation_advantage'][row, place]
        best = min(ratio * a, np.clip(ratio, 0.8, 1.2) * a)
        expected['policy'].append(-best)
        expected['clipped'].append(best < ratio * a)
        expected['ratio'].append(ratio)
        q = np.exp(batch['representation_reference'][row, place])
        expected['kl'].append(stats.entropy(p[row, place], q))
        expected['entropy'].append(stats.entropy(p[row, place]))
    for name, values in expected.items():
        found = value_of(objective, f'{name}_representation', outputs, batch)
        np.testing.assert_allclose(found, np.mean(values), rtol=1e-5, err_msg=name)
    assert 0 < np.mean(expected['clipped']) < 1


def test_a_loss_has_the_kl_weights_of_the_config_and_measures_have_none():
    kl = {'kl.representation': 0.1, 'kl.flow': 0.03}
    objective = policy.objective(config(('representation', 'flow'), **kl), None)
    weights = {name: weight for name, weight in objective.weights.items() if weight}
    assert weights == {
        **{'policy_representation': 1.0, 'policy_flow': 1.0},
        **{'kl_representation': 0.1, 'kl_flow': 0.03},
    }


def test_without_an_advantage_nothing_has_a_gradient():
    logits, batch = token_batch()
    batch['representation_advantage'] *= 0
    objective = policy.objective(config(('representation',)), None)

    def loss(logits):
        outputs = {'representation_logits': whole(logits)}
        counts = losses.counts(objective.terms, batch)
        return losses.total(objective.terms, objective.weights, counts, outputs, batch)[0]

    assert not np.asarray(jax.grad(loss)(jnp.asarray(logits))).any()


def flow_batch():
    """Two rows of two images of two patches."""
    t = np.repeat([[0.0, 0.3], [0.3, 0.6]], 2, 1).astype(np.float32)
    return {
        'z': jnp.asarray(normals(2, 4, 6)),
        'z_next': jnp.asarray(normals(2, 4, 6, seed=1)),
        't': jnp.asarray(t),
        't_next': jnp.asarray(t + 0.3),
        'pixel_image': jnp.asarray([[0, 0, 1, 1]] * 2),
        'pixel_counts': jnp.full((2, 2), 2),
        'flow_reference': jnp.asarray(normals(2, 4, 6, seed=2)),
    }


def test_the_log_probability_of_a_step_is_the_mean_over_the_values_of_its_image():
    batch, x = flow_batch(), jnp.asarray(normals(2, 4, 6, seed=3))
    (step,) = policy.policies(config(('flow',))).values()
    found = step.log_probs({'x': x}, batch)
    mean, std = flow.marginal_step(x, batch['z'], batch['t'], batch['t_next'], 0.7, 1.0, 0.05)
    density = stats.norm.logpdf(batch['z_next'], mean, np.asarray(std)[..., None])
    for row in range(2):
        for image in (slice(0, 2), slice(2, 4)):
            np.testing.assert_allclose(found[row, image], density[row, image].mean(), rtol=1e-4)


@pytest.mark.parametrize('with_dt', [True, False])
def test_the_kl_of_a_step_is_that_of_the_paper(with_dt):
    """Flow-GRPO, section 4: dt / 2 (sigma (1 - t) / 2t + 1 / sigma)^2 |v - v_ref|^2, where t = 1 is
    noise; the code of the authors has no dt.
    """
    batch, x = flow_batch(), jnp.asarray(normals(2, 4, 6, seed=3))
    (step,) = policy.policies(config(('flow',), **{'flow.kl_with_dt': with_dt})).values()
    found = step.kl({'x': x}, batch)
    for row in range(2):
        for image in (0, 1):
            at = row, slice(2 * image, 2 * image + 2)
            t, dt = float(batch['t'][row, 2 * image]), 0.3
            v = [(np.asarray(a) - batch['z'])[at] / (1 - t) for a in (x, batch['flow_reference'])]
            tau = 1 - t  # the paper's time
            sigma = 0.7 * np.sqrt(tau / (1 - tau if t else dt))
            factor = (sigma * (1 - tau) / (2 * tau) + 1 / sigma) ** 2 / 2
            expected = factor * np.mean((v[0] - v[1]) ** 2) * (dt if with_dt else dt**2)
            np.testing.assert_allclose(found[at], expected, rtol=1e-4)


def test_the_policies_of_a_flow_leave_the_tokens_alone():
    objective = policy.objective(config(('flow',)), None)
    assert set(objective.terms) == {'policy_flow', 'ratio_flow', 'clipped_flow'}


@pytest.mark.parametrize('sampler', flow.STOCHASTIC)
def test_padding_has_no_part_in_the_policy_of_a_flow(sampler):
    """A row of one image and as much padding, where the next time is 1 and a step has no noise."""
    batch = flow_batch()
    part = {name: array[:, :2] for name, array in batch.items() if name != 'pixel_counts'}
    part |= {'pixel_counts': jnp.full((2, 1), 2)}
    empty = {
        't': jnp.zeros((2, 2)),
        't_next': jnp.ones((2, 2)),
        'pixel_image': jnp.full((2, 2), -1),
    }
    padding = {name: empty.get(name, jnp.zeros_like(part[name])) for name in part}
    padded = {name: jnp.concatenate([part[name], padding[name]], 1) for name in part}
    padded['pixel_counts'] = part['pixel_counts']
    x = jnp.asarray(normals(2, 2, 6, seed=3))
    (step,) = policy.policies(config(('flow',), **{'flow.sampler': sampler})).values()

    def both(x, batch):
        return step.log_probs({'x': x}, batch)[:, :2].sum() + step.kl({'x': x}, batch)[:, :2].sum()

    value, gradient = jax.value_and_grad(both)(x, part)
    with_padding = jnp.concatenate([x, jnp.zeros_like(x)], 1)
    found, found_gradient = jax.value_and_grad(both)(with_padding, padded)
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(found_gradient[:, :2], gradient, rtol=1e-5, atol=1e-7)
    assert not np.asarray(found_gradient[:, 2:]).any()
