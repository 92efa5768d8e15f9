"""Losses are averages over the global count of tokens, however the batch is split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rf_jax.models.layers import Logits
from rf_jax.training import cross_entropy, losses

ROWS, T, R, P = 4, 6, 5, 8


@pytest.fixture
def config():
    return base.get_config()


@pytest.fixture
def case():
    """(outputs, batch) with few and unevenly distributed counted tokens."""
    rng = np.random.default_rng(0)
    batch = {
        'text_targets': rng.integers(0, 11, (ROWS, T)),
        'text_weight': (rng.random((ROWS, T)) < 0.4).astype(np.float32),
        'code_targets': rng.integers(-1, 7, (ROWS, R)),
        'x': rng.normal(size=(ROWS, P, 3)).astype(np.float32),
        't': rng.random((ROWS, P)).astype(np.float32),
        'pixel_weight': (rng.random((ROWS, P)) < 0.6).astype(np.float32),
    }
    batch['representation_weight'] = (batch['code_targets'] >= 0).astype(np.float32)
    batch['text_weight'][1] = 0  # a row without counted tokens
    outputs = {
        'text_logits': rng.normal(size=(ROWS, T, 11)).astype(np.float32) * 4,
        'representation_logits': rng.normal(size=(ROWS, R, 7)).astype(np.float32) * 4,
        'x': rng.normal(size=(ROWS, P, 3)).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, (outputs, batch))


def reference(logits, targets, weight):
    """Mean cross-entropy of the counted tokens, in float64."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    picked = np.take_along_axis(p, np.maximum(targets, 0)[..., None], -1)[..., 0]
    weight = np.asarray(weight)
    return -(np.log(picked) * weight).sum() / weight.sum()


def total(config, outputs, batch, counts=None):
    terms = losses.build(config)
    counts = counts or losses.counts(terms, batch)
    outputs = dict(outputs)
    for name in ('text_logits', 'representation_logits'):  # as from an identity head
        outputs[name] = Logits(outputs[name], jnp.eye(outputs[name].shape[-1]))
    return losses.total(terms, config.losses, counts, outputs, batch)


def test_cross_entropy_equals_numpy():
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=(3, 4, 9)) * 5, rng.integers(0, 9, (3, 4))
    found = cross_entropy.of_logits(jnp.asarray(logits), jnp.asarray(targets))
    for index in np.ndindex(3, 4):
        right = np.log(np.exp(logits[index]).sum()) - logits[index][targets[index]]
        np.testing.assert_allclose(found[index], right, rtol=1e-5)


def test_cross_entropy_of_large_logits_is_finite():
    found = cross_entropy.of_logits(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    np.testing.assert_allclose(found, 2e4)
    assert np.isfinite(cross_entropy.of_logits(jnp.zeros((1, 3)), jnp.array([-1]))).all()


def test_terms_are_means_over_counted_tokens(config, case):
    outputs, batch = case
    loss, means = total(config, outputs, batch)
    text = reference(outputs['text_logits'], batch['text_targets'], batch['text_weight'])
    codes = reference(
        outputs['representation_logits'], batch['code_targets'], batch['representation_weight']
    )
    error = ((outputs['x'] - batch['x']) ** 2).mean(-1)
    error = error / np.maximum(1 - batch['t'], config.flow.t_eps) ** 2
    flow = (error * batch['pixel_weight']).sum() / batch['pixel_weight'].sum()
    np.testing.assert_allclose(means['text'], text, rtol=1e-5)
    np.testing.assert_allclose(means['representation'], codes, rtol=1e-5)
    np.testing.assert_allclose(means['flow'], flow, rtol=1e-5)
    np.testing.assert_allclose(loss, text + codes + flow, rtol=1e-5)


def test_weights_scale_the_terms_and_zero_leaves_one_out(config, case):
    outputs, batch = case
    _, means = total(config, outputs, batch)
    config.losses.text, config.losses.flow = 0.5, 0.0
    loss, named = total(config, outputs, batch)
    np.testing.assert_allclose(loss, 0.5 * means['text'] + means['representation'], rtol=1e-6)
    assert set(named) == {'text', 'representation'}


def test_parts_add_up_with_the_whole_counts(config, case):
    outputs, batch = case
    loss, means = total(config, outputs, batch)
    counts = losses.counts(losses.build(config), batch)
    added = jax.tree.map(jnp.zeros_like, (loss, means))
    for rows in (slice(0, 1), slice(1, 2), slice(2, 4)):
        part = jax.tree.map(lambda a, rows=rows: a[rows], case)
        added = jax.tree.map(jnp.add, added, total(config, *part, counts))
    for a, b in zip(jax.tree.leaves(added), jax.tree.leaves((loss, means))):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_uncounted_tokens_change_nothing(config, case):
    outputs, batch = case
    loss, _ = total(config, outputs, batch)
    off = batch['pixel_weight'] == 0
    outputs['x'] = jnp.where(off[..., None], 100.0, outputs['x'])
    off = batch['text_weight'] == 0
    outputs['text_logits'] = jnp.where(off[..., None], 3.0, outputs['text_logits'])
    np.testing.assert_allclose(total(config, outputs, batch)[0], loss, rtol=1e-6)


def test_no_counted_tokens_give_zero_not_nan(config, case):
    outputs, batch = case
    for name in ('text_weight', 'representation_weight', 'pixel_weight'):
        batch[name] = jnp.zeros_like(batch[name])
    assert float(total(config, outputs, batch)[0]) == 0.0


def test_a_batch_says_which_terms_have_tokens(config, case):
    _, batch = case
    batch['pixel_weight'] = jnp.zeros_like(batch['pixel_weight'])
    found = losses.present(losses.build(config), batch)
    wanted = {'steps_with/text': 1, 'steps_with/representation': 1, 'steps_with/flow': 0}
    assert {name: float(value) for name, value in found.items()} == wanted


def test_time_bands_add_up_to_the_flow_loss():
    t = jnp.array([[0.0, 0.1, 0.25, 0.49, 0.5, 0.8, 0.99, 1.0]])
    values = jnp.arange(1.0, 9.0)[None]
    weight = jnp.array([[1.0, 0, 1, 1, 1, 1, 1, 1]])
    found = losses.time_bands(values, t, weight)
    assert [float(found[f'flow_count_{i}']) for i in range(4)] == [1, 2, 1, 3]
    assert [float(found[f'flow_sum_{i}']) for i in range(4)] == [1, 3 + 4, 5, 6 + 7 + 8]
