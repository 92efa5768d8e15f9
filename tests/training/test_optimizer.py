"""AdamW equals its formulas, parameter by parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from rf_jax.runtime.errors import UserError
from rf_jax.training import optimizer

STEPS = 6
SHAPES = {
    'backbone/layers/ffn/kernel': (3, 4),
    'backbone/norm/scale': (4,),
    'connector/up/kernel': (4, 2),
    'connector/up/bias': (2,),
    'encoder/class_and_registers': (2, 3),
    'patch_in/patch/kernel': (5, 3),
    'text_embed/table': (6, 2),
}
DECAYED = ('kernel', 'table', 'class_and_registers')


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, last = path.split('/')
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = jnp.asarray(value, jnp.float32)
    return tree


def flat(tree):
    return dict(zip(optimizer.paths(tree), map(np.asarray, jax.tree.leaves(tree))))


def config(**changes):
    c = base.get_config().optimizer
    c.update(learning_rate=0.02, warmup_steps=4, weight_decay=0.3, grad_clip_norm=1.0)
    c.lr_multipliers, c.freeze = ((r'^patch_in/', 4.0),), (r'^encoder/',)
    c.update(changes)
    return c


def normals(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {path: scale * rng.normal(size=shape) for path, shape in SHAPES.items()}


def numpy_adamw(params, gradients, c, rate_of):
    """AdamW by hand in float64; `rate_of(path)`: 0 if frozen."""
    params = {path: value.copy() for path, value in params.items()}
    m = dict.fromkeys(params, 0.0)
    v = dict.fromkeys(params, 0.0)
    for step, gradient in enumerate(gradients, 1):
        live = [path for path in params if rate_of(path)]
        norm = np.sqrt(sum((gradient[path] ** 2).sum() for path in live))
        for path in live:
            g = gradient[path] * min(1.0, c.grad_clip_norm / norm)
            m[path] = c.beta1 * m[path] + (1 - c.beta1) * g
            v[path] = c.beta2 * v[path] + (1 - c.beta2) * g**2
            move = m[path] / (1 - c.beta1**step)
            move = move / (np.sqrt(v[path] / (1 - c.beta2**step)) + c.epsilon)
            if path.split('/')[-1] in DECAYED:
                move = move + c.weight_decay * params[path]
            rate = c.learning_rate * min(1.0, step / c.warmup_steps) * rate_of(path)
            params[path] = params[path] - rate * move
    return params


def run(c, params, gradients):
    params = nested(params)
    chain = optimizer.build(c, params, 100)
    state = chain.init(params)
    for gradient in gradients:
        updates, state = chain.update(nested(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return flat(params)


def test_equals_adamw_by_hand():
    c = config()
    params = normals(0)
    # From far above the clipping norm to far below it.
    gradients = [normals(1 + i, scale) for i, scale in enumerate([9, 1, 0.01, 3, 0.1, 0.02])]

    def rate_of(path):
        return 0.0 if path.startswith('encoder/') else 4.0 if path.startswith('patch_in/') else 1.0

    right = numpy_adamw(params, gradients, c, rate_of)
    found = run(c, params, gradients)
    assert found.keys() == right.keys()
    for path in found:
        np.testing.assert_allclose(found[path], right[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_frozen_parameters_are_bit_identical_and_do_not_clip_the_others():
    params = normals(0)
    gradients = [normals(i + 1) for i in range(STEPS)]
    huge = [{**g, 'encoder/class_and_registers': np.full((2, 3), 1e6)} for g in gradients]
    found = run(config(), params, huge)
    frozen = np.float32(params['encoder/class_and_registers'])
    assert found['encoder/class_and_registers'].tobytes() == frozen.tobytes()
    calm = run(config(), params, gradients)
    for path in set(SHAPES) - {'encoder/class_and_registers'}:
        np.testing.assert_array_equal(found[path], calm[path], err_msg=path)


def test_only_matrices_and_tables_have_weight_decay():
    params, still = normals(0), {path: np.zeros(shape) for path, shape in SHAPES.items()}
    found = run(config(freeze=()), params, [still])
    for path, value in params.items():
        shrinks = 1 - 0.02 / 4 * 0.3 * (4 if path.startswith('patch_in/') else 1)
        factor = shrinks if path.split('/')[-1] in DECAYED else 1.0
        np.testing.assert_allclose(found[path], value * factor, rtol=1e-6, err_msg=path)


def test_warmup_is_linear_then_constant():
    rate = optimizer.schedule(config(), 10)
    np.testing.assert_allclose([rate(i) for i in range(6)],
                               [0.005, 0.01, 0.015, 0.02, 0.02, 0.02], rtol=1e-6)  # fmt: skip
    assert float(optimizer.schedule(config(warmup_steps=0), 10)(0)) == pytest.approx(0.02)


def test_the_rate_falls_linearly_at_the_end_of_the_run():
    rate = optimizer.schedule(config(decay_steps=4), 10)
    np.testing.assert_allclose([rate(i) for i in range(12)],
        [0.005, 0.01, 0.015, *[0.02] * 4, 0.015, 0.01, 0.005, 0, 0], rtol=1e-6)  # fmt: skip


def test_the_first_matching_rule_wins_and_freezing_overrides_multipliers():
    params = nested(normals(0))
    rules = ((r'up/kernel$', 2.0), (r'^connector/', 3.0), (r'^encoder/', 5.0))
    found = flat(optimizer.lr_multipliers(params, rules, (r'^encoder/',)))
    assert found['connector/up/kernel'] == 2.0 and found['connector/up/bias'] == 3.0
    assert found['encoder/class_and_registers'] == 0.0 and found['text_embed/table'] == 1.0


@pytest.mark.parametrize('field', ['lr_multipliers', 'freeze'])
def test_a_rule_that_matches_nothing_is_an_error(field):
    rule = {'lr_multipliers': (('no_such', 4.0),), 'freeze': ('no_such',)}[field]
    with pytest.raises(UserError, match=rf'optimizer\.{field}.*no_such'):
        optimizer.build(config(**{field: rule}), nested(normals(0)), 10)


@pytest.mark.parametrize('rules', [('x',), (('up', 'fast'),), (('up', 1.0, 2.0),), (3,)])
def test_multipliers_that_are_not_pairs_are_an_error(rules):
    with pytest.raises(
        UserError, match=r'optimizer\.lr_multipliers=.*: expected pairs \(regex, factor\)'
    ):
        optimizer.build(config(lr_multipliers=rules), nested(normals(0)), 10)


@pytest.mark.parametrize('field', ['lr_multipliers', 'freeze'])
def test_a_rule_that_is_not_a_regular_expression_is_an_error(field):
    rule = {'lr_multipliers': (('(up', 4.0),), 'freeze': ('(up',)}[field]
    with pytest.raises(UserError, match=rf"optimizer\.{field} has '\(up', which is not a regular"):
        optimizer.build(config(**{field: rule}), nested(normals(0)), 10)


def test_no_gradient_is_computed_for_frozen_parameters():
    params = {'encoder': {'kernel': jnp.ones((4, 4))}, 'connector': {'kernel': jnp.ones((4, 4))}}

    def loss(params, freeze):
        live = optimizer.stop_frozen_gradients(params, freeze)
        return jnp.sum(jnp.ones((3, 4)) @ live['encoder']['kernel'] @ live['connector']['kernel'])

    found = jax.grad(loss)(params, (r'^(?!connector/)',))
    assert not found['encoder']['kernel'].any() and found['connector']['kernel'].all()
    cost = {
        freeze: jax.jit(jax.grad(lambda p, freeze=freeze: loss(p, freeze)))
        .lower(params)
        .compile()
        .cost_analysis()['flops']
        for freeze in ((), (r'^encoder/',))
    }
    assert cost[r'^encoder/',] < cost[()]
