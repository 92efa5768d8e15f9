"""Cross-entropy in tiles: the loss and gradients of all logits, without holding all of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from shrink import shrink

from configs import base, paper
from rf_jax.models.layers import Logits
from rf_jax.models.token_sharding import UNSHARDED, TokenSharding
from rf_jax.runtime.mesh import AXES, BATCH_AXES, make_mesh
from rf_jax.training import jitted, losses
from rf_jax.training.cross_entropy import TILE, CrossEntropy, of_logits

pytestmark = pytest.mark.slow

B, N, D, V = 8, 6, 16, 64
PATH = 'text_head/kernel'
TABLE = base.get_config().sharding


def case(dtype=jnp.float32):
    """(hidden, kernel, targets, weight); a third of the tokens masked, some without a target."""
    rng = np.random.default_rng(0)
    weight = (rng.random((B, N)) < 0.67).astype(np.float32)
    targets = np.where(weight > 0, rng.integers(0, V, (B, N)), -1)
    hidden = jnp.asarray(rng.normal(size=(B, N, D)) * 2, dtype)
    kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    return hidden, kernel, jnp.asarray(targets), jnp.asarray(weight)


def untiled(hidden, kernel, targets, weight):
    logits = hidden.astype(jnp.float32) @ kernel.astype(hidden.dtype).astype(jnp.float32)
    return jnp.sum(of_logits(logits, targets) * weight)


def with_gradients(function, arguments):
    """Loss and gradients of 0.3 times the sum, since a loss divides it by its count."""
    run = jax.value_and_grad(lambda h, k: 0.3 * function(h, k, *arguments[2:]), (0, 1))
    return jax.jit(run)(*arguments[:2])


def tiled(tile: int, sharding: TokenSharding = UNSHARDED, table=TABLE):
    head = CrossEntropy(sharding, table, tile)
    return lambda h, k, *tokens: head(PATH, Logits(h, k), *tokens)


def assert_equal(found, right, tolerance):
    assert found[0].dtype == jnp.float32
    np.testing.assert_allclose(found[0], right[0], rtol=1e-5)
    for a, b in zip(found[1], right[1]):
        assert a.dtype == b.dtype and float(jnp.abs(b).max()) > 0.1
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize('tokens', [1, 16, 17, 40])  # 40: the second of two tiles is ragged
def test_tiles_have_the_loss_and_gradients_of_the_whole(dtype, tolerance, tokens):
    arguments = case(dtype)
    right = with_gradients(untiled, arguments)
    assert_equal(with_gradients(tiled(tokens * V), arguments), right, tolerance)


@pytest.mark.parametrize('sizes', [
    {'fsdp': 8},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
    {'fsdp': 2, 'tensor': 2, 'context': 2},
    {'data': 2, 'expert': 2, 'context': 2},
])  # fmt: skip
def test_tiles_of_eight_devices_have_the_loss_and_gradients_of_one(sizes):
    mesh = make_mesh({'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | sizes)
    arguments = case()
    tokens = NamedSharding(mesh, PartitionSpec(BATCH_AXES, 'context'))
    kernel = NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))
    placed = [jax.device_put(a, s) for a, s in zip(arguments, (tokens, kernel, tokens, tokens))]
    found = with_gradients(tiled(2 * V, TokenSharding(mesh)), placed)
    assert_equal(found, with_gradients(untiled, arguments), 1e-5)


@pytest.mark.parametrize('axes', [('tensor', 'fsdp'), (('data', 'tensor'), 'fsdp'), ((), ())])
def test_a_head_sharded_over_tensor_along_its_width_has_the_gradients_of_one_device(axes):
    """`tensor` holds the same tokens on each of its devices."""
    mesh = make_mesh({'data': 2, 'fsdp': 2, 'expert': 1, 'tensor': 2, 'context': 1})
    arguments = case()
    head = tiled(2 * V, TokenSharding(mesh), (('kernel$', axes),))
    assert_equal(with_gradients(head, arguments), with_gradients(untiled, arguments), 1e-5)


def test_a_vocabulary_that_is_gathered_for_use_counts_in_full():
    """12 tokens of a device have 12 V logits, also where its part of the kernel is V / 4 wide."""
    mesh = make_mesh(dict.fromkeys(AXES, 1) | {'fsdp': 4}, jax.devices()[:4])
    for tile, loops in ((12 * V, False), (12 * V - 1, True)):
        head = tiled(tile, TokenSharding(mesh), (('kernel$', (None, 'fsdp')),))
        assert ('while' in jax.jit(head).lower(*case()).as_text()) == loops


def test_a_frozen_head_computes_no_gradient():
    arguments = case()
    function = tiled(8 * V)

    def flops(*learned):
        run = jax.jit(jax.grad(lambda *a: function(*a, *arguments[2:]), learned))
        text = run.lower(*arguments[:2]).as_text()
        return text.count('dot_general')

    assert flops(0, 1) == 3 and flops(0) == 2  # logits, hidden states and kernel


def test_a_small_head_is_computed_without_tiles():
    arguments = case()
    right = jax.jit(untiled)(*arguments)
    assert jax.jit(tiled(TILE))(*arguments) == right
    assert 'while' not in jax.jit(tiled(TILE)).lower(*arguments).as_text()


def test_no_train_step_holds_the_float32_logits_of_all_tokens():
    """Vocabulary and text of a paper config on one device, everything else tiny."""
    joint = paper.get_config('joint/0.6B')
    tokens, entries = joint.data.capacity.text, joint.tokenizer.vocab_size
    config = shrink(joint)
    config.data.batch_size, config.data.capacity.text = 1, tokens
    built = jitted.build(config, entries, make_mesh(config.mesh, jax.devices()[:1]))
    text = built.train_step.lower(built.abstract, built.batch()).compile().as_text()
    held = {tuple(map(int, dims.split(','))) for dims in re.findall(r'f32\[([\d,]+)\]', text)}
    assert (32, entries) in held, 'the kernel of the head'
    large = [shape for shape in held if entries in shape and np.prod(shape) >= tokens * entries]
    assert not large, f'float32 {large}'


def test_the_terms_have_the_paths_of_their_heads():
    config = base.get_config()
    built = jitted.build(shrink(config), 384, make_mesh(config.mesh))
    paths = {jax.tree_util.keystr(path, simple=True, separator='/')
             for path, _ in jax.tree_util.tree_leaves_with_path(built.abstract.params)}  # fmt: skip
    for term in losses.build(config).values():
        assert isinstance(term, losses.Term) or term.path in paths
