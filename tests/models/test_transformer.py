"""transformer.py: Qwen3's block spelled out, expert groups, options that change no result."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from rf_jax.models import transformer
from rf_jax.models.attention import select
from rf_jax.models.moe.experts import GROUPS

WIDTH, HEADS, KV_HEADS, HEAD_DIM = 16, 4, 2, 8
LENGTHS = (5, 4, 3)  # tokens of the three groups
LENGTH = sum(LENGTHS)
EPSILON, THETA = 0.01, 100.0  # neither is a default, and the epsilon is large enough to matter
SPLITS = ('ffn', 'full')
FAST = {'xla_backend_optimization_level': 0}  # compiling is most of what these tests do


def build(split, layers=2, tapped=None, **changes):
    config = base.get_config()
    config.model.backbone.update(
        layers=layers, width=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM,
        feedforward=12, split=split, norm_eps=EPSILON, rope_theta=THETA, **changes,
    )  # fmt: skip
    config.model.backbone.rope_sections = (2, 1, 1)
    return transformer.build(config, select.build(config), 'cpu', tapped_layer=tapped)()


def inputs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
    position = jnp.array(rng.uniform(0, 9, (2, LENGTH, 3)), jnp.float32)
    mask = rng.random((2, LENGTH, LENGTH)) < 0.5
    return x, position, mask | np.eye(LENGTH, dtype=bool)


@cache
def params_of(split, layers=2):
    backbone = build(split, layers)

    shapes = jax.eval_shape(
        lambda key: backbone.init(key, *inputs(), LENGTHS)['params'], jax.random.key(0)
    )
    rng = np.random.default_rng(0)

    def draw(path, shape):
        is_scale = jax.tree_util.keystr(path).endswith("scale']")
        return (0.3 * rng.normal(size=shape.shape) + is_scale).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def rms(scale, x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * scale


def turn(x, position):
    """x [L, Dh]: order rotates the first and last frequencies, row and column the others."""
    angles = np.tile(position[:, [0, 1, 2, 0]] * THETA ** (-np.arange(4) / 4), 2)
    rotated = np.concatenate([-x[:, 4:], x[:, :4]], -1)
    return x * np.cos(angles) + rotated * np.sin(angles)


def of_group(params, split, part, group):
    """Parameters of one group of a layer, shared or not."""
    if split == 'full':
        names = {'attention': f'{group}_attention', 'output': f'{group}_output', 'ffn': group}
        p = params[names[part]]
        return (p['norm'], p['ffn']) if part == 'ffn' else p
    return (params['ffn_norm'], params[group]['ffn']) if part == 'ffn' else params[part]


def reference(params, split, x, position, mask, layers):
    """One row, token by token: x [L, D], mask [L, L]."""
    group_of = np.repeat(GROUPS, LENGTHS)
    for layer in range(layers):
        p = jax.tree.map(lambda a, layer=layer: np.asarray(a[layer]), params['layers'])
        q = np.zeros((LENGTH, HEADS, HEAD_DIM))
        k, v = np.zeros((2, LENGTH, KV_HEADS, HEAD_DIM))
        for i, group in enumerate(group_of):
            a = of_group(p, split, 'attention', group)
            y = rms(a['norm']['scale'], x[i])
            q[i] = rms(a['query_norm']['scale'], (y @ a['query']['kernel']).reshape(HEADS, -1))
            k[i] = rms(a['key_norm']['scale'], (y @ a['key']['kernel']).reshape(KV_HEADS, -1))
            v[i] = (y @ a['value']['kernel']).reshape(KV_HEADS, -1)
        out = np.zeros_like(q)
        for h in range(HEADS):
            g = h // (HEADS // KV_HEADS)
            logits = turn(q[:, h], position) @ turn(k[:, g], position).T / np.sqrt(HEAD_DIM)
            weights = np.where(mask, np.exp(logits), 0)
            out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, g]
        x = x.copy()
        for i, group in enumerate(group_of):
            x[i] += out[i].ravel() @ of_group(p, split, 'output', group)['kernel']
            norm, f = of_group(p, split, 'ffn', group)
            y = rms(norm['scale'], x[i])
            gate = y @ f['gate']['kernel']
            x[i] += gate / (1 + np.exp(-gate)) * (y @ f['up']['kernel']) @ f['down']['kernel']
    return rms(np.asarray(params['norm']['scale']), x)


@pytest.mark.parametrize('split', SPLITS)
def test_the_stack_is_qwen3_with_a_feedforward_per_group(split):
    params = params_of(split)
    x, position, mask = inputs()
    run = jax.jit(
        lambda p, *a: build(split).apply({'params': p}, *a, LENGTHS)[0], compiler_options=FAST
    )
    out = run(params, x, position, mask)
    for row in range(2):
        wanted = reference(params, split, x[row], np.asarray(position[row]), mask[row], 2)
        np.testing.assert_allclose(out[row], wanted, atol=1e-4, rtol=1e-4)


@cache
def outputs_and_gradients(split, **changes):
    def loss(params):
        out, *_ = build(split, **changes).apply({'params': params}, *inputs(), LENGTHS)
        return jnp.sin(out).sum(), out

    gradients, out = jax.jit(jax.grad(loss, has_aux=True), compiler_options=FAST)(params_of(split))
    return out, gradients


@pytest.mark.parametrize(
    ('split', 'unroll', 'remat'),
    [('ffn', 2, 'none'), ('ffn', 1, 'dots'), ('ffn', 1, 'gate'), ('full', 1, 'full')],
)
def test_unroll_and_remat_change_no_output_or_gradient(split, unroll, remat):
    out, gradients = outputs_and_gradients(split)
    other, other_gradients = outputs_and_gradients(split, unroll=unroll, remat=remat)
    np.testing.assert_allclose(out, other, atol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(other_gradients)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients)):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)
        assert np.abs(a).max() > 0


@pytest.mark.parametrize('split', SPLITS)
def test_the_parameters_of_a_group_receive_its_own_tokens_only(split):
    """One layer: the output of a token depends on the feed-forward of its own group only."""
    group_of = np.repeat(np.arange(3), LENGTHS)

    @partial(jax.jit, compiler_options=FAST)
    def gradient(params, counted):
        def loss(params):
            out, *_ = build(split, 1).apply({'params': params}, *inputs(), LENGTHS)
            return jnp.sum(jnp.sin(out) * counted[:, None])

        return jax.grad(loss)(params)['layers']

    for number, group in enumerate(GROUPS):
        found = gradient(params_of(split, layers=1), group_of == number)
        for other in GROUPS:
            parts = [found[other]]
            if split == 'full':
                parts += [found[f'{other}_output'], found[f'{other}_attention']['query']]
            for leaf in jax.tree.leaves(parts):
                assert bool(leaf.any()) == (group == other)
        shared = found if split == 'ffn' else found[f'{group}_attention']
        assert all(leaf.any() for name in ('norm', 'ffn_norm') if name in shared
                   for leaf in jax.tree.leaves(shared[name]))  # fmt: skip


def one_by_one(params):
    """The other form of parameters, that of generation."""
    return transformer.by_layer({'backbone': params}, tuple)['backbone']


FORMS = {'stacked': lambda params: params, 'one by one': one_by_one}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('split', SPLITS)
def test_a_kv_cache_gives_the_same_as_all_tokens_at_once(split, form):
    """After the cached tokens, or written to slots of the cache."""
    params, backbone = FORMS[form](params_of(split)), build(split)
    x, position, _ = inputs()
    first = LENGTHS[0]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), (2, LENGTH, LENGTH))

    @partial(jax.jit, compiler_options=FAST)
    def both(params):
        def run(*args, **kwargs):
            return backbone.apply({'params': params}, *args, **kwargs)

        whole, _, kept, _ = run(x, position, mask, LENGTHS, keep=True)
        head, _, cache, _ = run(x[:, :first], position[:, :first], mask[:, :first, :first],
                          (first, 0, 0), keep=True)  # fmt: skip
        rest = x[:, first:], position[:, first:], mask[:, first:], (0, *LENGTHS[1:])
        tail, *_ = run(*rest, cache=cache)
        room = ((0, 0), (0, LENGTH - first), (0, 0))
        grown = jax.tree.map(lambda a: jnp.pad(a, ((0, 0),) * (a.ndim - 3) + room), cache)
        slots = jnp.broadcast_to(jnp.arange(first, LENGTH), (2, LENGTH - first))
        written, _, filled, _ = run(*rest, cache=grown, slots=slots, keep=True)
        return whole, head, (tail, written), kept, filled

    whole, head, tails, kept, filled = both(params)
    for tail in tails:
        np.testing.assert_allclose(whole, jnp.concatenate([head, tail], 1), atol=1e-5)
    assert len(jax.tree.leaves(kept)) == (2 if form == 'stacked' else 4)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), kept, filled)


@pytest.mark.parametrize('slot', [LENGTH, LENGTH + 3])
def test_a_slot_after_the_cache_is_written_nowhere(slot):
    params, (x, position, _) = one_by_one(params_of('ffn')), inputs()
    mask = jnp.ones((2, 1, LENGTH), bool)
    empty = ((jnp.zeros((2, 2, LENGTH, 8)),) * 2,) * 2
    slots = jnp.array([[slot], [3]])
    run = build('ffn').apply
    _, _, kept, _ = run({'params': params}, x[:, :1], position[:, :1], mask, (1, 0, 0),
                        cache=empty, slots=slots, keep=True)  # fmt: skip
    for a in jax.tree.leaves(kept):
        assert [np.flatnonzero(np.abs(row).sum((0, 2))).tolist() for row in a] == [[], [3]]


def test_unroll_and_remat_do_not_change_the_parameter_tree():
    for split in SPLITS:
        shapes = jax.tree.map(jnp.shape, params_of(split))
        other = build(split, remat='full', unroll=2)
        born = jax.eval_shape(lambda k, b=other: b.init(k, *inputs(), LENGTHS), jax.random.key(0))
        assert jax.tree.map(jnp.shape, born['params']) == shapes
        stacked = jax.tree.leaves(born['params']['layers'])
        assert all(leaf.shape[0] == 2 for leaf in stacked)


def test_the_last_layer_can_be_tapped_by_its_number():
    params = params_of('ffn')
    run = jax.jit(
        lambda p, *a: build('ffn', tapped=2).apply({'params': p}, *a, LENGTHS),
        compiler_options=FAST,
    )
    x, *_, tapped = run(params, *inputs())
    np.testing.assert_allclose(rms(params['norm']['scale'], tapped), x, atol=1e-4)
