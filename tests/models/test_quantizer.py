"""quantizer.py against slow numpy, with padding in the middle, and over eight devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from shrink import shrink

from configs import base, emoji
from rf_jax.evaluation import code_content
from rf_jax.models import quantizer
from rf_jax.models.representation import forcing
from rf_jax.training import train_loop

M, K, D = 64, 7, 5
TEMPERATURE = 0.1


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def features():
    """(z, codebook, valid); the padding is between the real features and far from zero."""
    rng = np.random.default_rng(0)
    z = unit(rng.normal(size=(M, D)) + 0.5).astype(np.float32)
    codebook = unit(rng.normal(size=(K, D))).astype(np.float32)
    valid = rng.random(M) < 0.6
    z[~valid] = z[~valid][:1]  # all equal: if counted, they would change the balance
    return z, codebook, valid


def slow_printed(z, codebook, temperature=TEMPERATURE):
    p = np.exp(z @ codebook.T / temperature)
    p /= p.sum(1, keepdims=True)
    q = np.exp(p) / np.exp(p).sum(0, keepdims=True)  # the paper's second softmax, over samples
    return q.argmax(1)


def slow_sinkhorn(z, codebook, iterations):
    q = np.exp(z.astype(np.float64) @ codebook.T / TEMPERATURE)
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True)
        q /= q.sum(0, keepdims=True)
    return q.argmax(1)


def slow_nearest(z, codebook):
    return np.array([np.argmax([c @ x for c in codebook]) for x in z])


MODES = {
    'printed': slow_printed,
    'sinkhorn': lambda z, codebook: slow_sinkhorn(z, codebook, 3),
    'nearest': slow_nearest,
}


def build(mode):
    config = base.get_config()
    config.model.representation.quantizer.update(
        mode=mode, temperature=TEMPERATURE, sinkhorn_iterations=3
    )
    return quantizer.build(config)


@pytest.mark.parametrize('mode', MODES)
def test_codes_depend_on_valid_features_alone(mode, features):
    z, codebook, valid = features
    codes = build(mode)(z, codebook, valid)
    assert codes.dtype == jnp.int32 and codes.shape == (M,)
    assert codes.min() >= 0 and codes.max() < K
    np.testing.assert_array_equal(codes[valid], MODES[mode](z[valid], codebook))


@pytest.mark.parametrize('mode', MODES)
def test_much_padding_changes_no_code(mode, features):
    """Nor the weight of the shares of `printed`, which are over the valid samples."""
    z, codebook, valid = features
    padding = 50 * M
    padded = jnp.concatenate([z, jnp.tile(z, (50, 1))])
    codes = build(mode)(padded, codebook, jnp.concatenate([valid, jnp.zeros(padding, bool)]))
    np.testing.assert_array_equal(codes[:M][valid], MODES[mode](z[valid], codebook))


def test_printed_is_precise_enough_at_the_papers_size():
    """p is about 1 / K, a sum over samples in the hundreds: float32 must not add the two."""
    rng = np.random.default_rng(3)
    z, codebook = (
        unit(rng.normal(size=(count, 64)) + 1).astype(np.float32) for count in (300, 16_384)
    )
    codes = quantizer.Printed(0.5)(z, codebook, np.ones(len(z), bool))
    right = slow_printed(z.astype(np.float64), codebook.astype(np.float64), 0.5)
    assert (codes != right).mean() < 0.005  # with the logarithm of the sum, 6 % are wrong


def test_the_modes_differ_here(features):
    """Otherwise the test above could not distinguish them."""
    z, codebook, valid = features
    codes = [tuple(MODES[mode](z[valid], codebook)) for mode in MODES]
    assert len(set(codes)) == len(codes)
    everything = slow_sinkhorn(z, codebook, 3)[valid]
    assert tuple(everything) != codes[1]  # counting padding would make a difference


def test_sinkhorn_balances():
    rng = np.random.default_rng(1)
    z = unit(rng.normal(size=(400, 8)) + 1).astype(np.float32)
    codebook = unit(rng.normal(size=(8, 8))).astype(np.float32)
    valid = np.ones(400, bool)
    near = np.bincount(quantizer.Nearest()(z, codebook, valid), minlength=8)
    even = np.bincount(quantizer.Sinkhorn(0.1, 20)(z, codebook, valid), minlength=8)
    assert even.max() < near.max() and even.min() > near.min()


@pytest.mark.parametrize('mode', MODES)
def test_no_valid_feature_gives_codes_and_no_nan(mode, features):
    z, codebook, _ = features
    none = np.zeros(M, bool)
    codes = build(mode)(z, codebook, none)
    assert ((codes >= 0) & (codes < K)).all()
    moved = quantizer.update(codebook, z, codes, none, 0.9)
    np.testing.assert_array_equal(moved, codebook)
    assert jnp.isfinite(quantizer.random_features(jax.random.key(0), z * 0, none, K)).all()


def test_momentum_update_equals_a_loop(features):
    z, codebook, valid = features
    codes = np.array(slow_nearest(z, codebook))
    codes[codes == 3] = 2  # no feature has code 3
    codes[~valid] = np.where(np.arange((~valid).sum()) % 2, 0, 3)  # only padding
    wanted = codebook.copy()
    for k in range(K):
        mine = z[valid & (codes == k)]
        if len(mine):
            wanted[k] = unit(0.9 * codebook[k] + 0.1 * unit(mine.mean(0)))
    moved = np.asarray(quantizer.update(codebook, z, jnp.array(codes), valid, 0.9))
    np.testing.assert_allclose(moved, wanted, atol=1e-6)
    np.testing.assert_array_equal(moved[3], codebook[3])  # an unused prototype stays as it is
    assert np.abs(moved - codebook).max() > 1e-2
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)


def test_opposite_features_leave_a_prototype_finite():
    z = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
    moved = quantizer.update(jnp.array([[0.0, 1.0]]), z, jnp.zeros(2, jnp.int32), z[:, 1] == 0, 0.9)
    np.testing.assert_allclose(moved, [[0.0, 1.0]])


def test_normalise_is_float32_and_safe_at_zero():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]], jnp.bfloat16)
    y = quantizer.normalise(x)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, [[0.6, 0.8], [0.0, 0.0]], atol=1e-6)
    assert jnp.isfinite(jax.grad(lambda a: quantizer.normalise(a).sum())(jnp.zeros((1, 2)))).all()


@pytest.mark.parametrize('codes', [5, 100])
def test_random_initialisation_samples_valid_features_evenly(codes, features):
    z, _, valid = features
    z = unit(np.random.default_rng(2).normal(size=(M, 32))).astype(np.float32)  # far apart
    book = np.asarray(quantizer.random_features(jax.random.key(0), jnp.array(z), valid, codes))
    assert book.shape == (codes, 32)
    np.testing.assert_allclose(np.linalg.norm(book, axis=1), 1, atol=1e-5)
    nearest = (book @ z.T).argmax(1)
    assert (book * z[nearest]).sum(1).min() > 0.99
    used = np.bincount(nearest, minlength=M)
    assert not used[~valid].any()
    assert used[valid].max() - used[valid].min() <= 1
    assert len(np.unique(book, axis=0)) == codes  # repeats are separated
    other = quantizer.random_features(jax.random.key(1), jnp.array(z), valid, codes)
    assert not np.array_equal(book, other)


def test_farthest_features_include_rare_ones():
    """250 equal features and 6 others: random sampling misses most of the 6, this none."""
    rng = np.random.default_rng(5)
    rare = unit(rng.normal(size=(6, 32)))
    ground = unit(rng.normal(size=(1, 32)) + 0.02 * rng.normal(size=(250, 32)))
    z = np.concatenate([ground, rare]).astype(np.float32)
    valid = np.arange(len(z)) != len(z) - 1  # the last rare feature is padding
    key = jax.random.key(0)
    spread = np.asarray(quantizer.farthest_features(key, jnp.array(z), jnp.array(valid), 8))
    assert (spread @ rare.T).max(0)[:-1].min() > 0.99 > 0.9 > (spread @ rare[-1]).max()
    assert (spread @ ground.T).max() > 0.99 and len(np.unique(spread, axis=0)) == 8
    drawn = np.asarray(quantizer.random_features(key, jnp.array(z), jnp.array(valid), 8))
    assert ((drawn @ rare.T).max(0) > 0.99).sum() < 3
    none = quantizer.farthest_features(key, jnp.array(z) * 0, jnp.zeros(len(z), bool), 300)
    assert none.shape == (300, 32) and jnp.isfinite(none).all()


def test_eight_devices_give_the_result_of_one(features):
    z, codebook, valid = features
    codebook = np.concatenate([codebook, -codebook[:1]])  # 8 rows, one per device

    @partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
    def run(z, codebook, valid):
        codes = {mode: build(mode)(z, codebook, valid) for mode in MODES}
        moved = quantizer.update(codebook, z, codes['printed'], valid, 0.9)
        return codes, moved, quantizer.random_features(jax.random.key(0), z, valid, K)

    single = run(z, codebook, valid)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    inputs = [jax.device_put(x, rows) for x in (z, codebook, valid)]
    assert len(inputs[0].sharding.device_set) == 8
    sharded = run(*inputs)
    for mode in MODES:
        np.testing.assert_array_equal(single[0][mode], sharded[0][mode])
    np.testing.assert_allclose(single[1], sharded[1], atol=1e-6)
    np.testing.assert_allclose(single[2], sharded[2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['printed', 'sinkhorn'])  # nearest does not balance
def test_an_epoch_of_emoji_uses_most_prototypes(mode, tmp_path):
    config = shrink(emoji.get_config())
    config.model.representation.codebook_size = 128
    config.model.representation.quantizer.mode = mode
    config.data.batch_size = 128  # enough features in the batch that initialises the codebook
    config.mesh.fsdp = 1
    run = train_loop.build(config, tmp_path, jax.devices()[:1])
    state = run.initialise()
    # Even at a step that would replace the codebook, the current one is measured.
    alike = state.replace(codebook=jnp.full_like(state.codebook, state.codebook.shape[1] ** -0.5))
    assert code_content.codes_over_an_epoch(run, alike) <= 0.1
    state, _ = run.train_step(state, run.put(run.batches.batch(0)))
    assert code_content.codes_over_an_epoch(run, state) >= 0.6


@pytest.mark.parametrize('how', ['random', 'farthest'])
def test_a_codebook_larger_than_the_batch_is_initialised_over_several_steps(how):
    config = base.get_config()
    config.model.representation.quantizer.data_init = how
    rng = np.random.default_rng(0)
    old = codebook = jnp.asarray(unit(rng.normal(size=(20, D))), jnp.float32)
    valid = jnp.ones(8, bool)
    for number in range(3, 8):  # initialised from step 4 on: rows 0-7, 8-15, 16-19
        z = jnp.asarray(unit(rng.normal(size=(8, D))), jnp.float32)
        before = codebook
        codebook = forcing.reinitialise(config, 4, jnp.int32(number), codebook, z, valid)
        drawn = slice(*{4: (0, 8), 5: (8, 16), 6: (16, 20)}.get(number, (0, 0)))
        kept = np.ones(20, bool)
        kept[drawn] = False
        np.testing.assert_array_equal(codebook[kept], before[kept])
        nearest = np.argmax(codebook[drawn] @ z.T, axis=1)
        assert len(set(nearest.tolist())) == drawn.stop - drawn.start  # all distinct features
    assert (np.abs(codebook - old).max(1) > 1e-3).all()
    if how == 'farthest':  # features chosen in the previous step are chosen last
        half = jnp.concatenate([codebook[:4], z[:4]])
        again = np.asarray(forcing.reinitialise(config, 4, jnp.int32(5), codebook, half, valid))
        assert set((again[8:12] @ half.T).argmax(1).tolist()) == {4, 5, 6, 7}
    empty = forcing.reinitialise(config, 4, jnp.int32(4), old, z, jnp.zeros(8, bool))
    np.testing.assert_array_equal(empty, old)  # nothing to draw from
