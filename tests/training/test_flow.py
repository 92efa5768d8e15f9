"""Flow matching is correct where the answer is known: the exact denoiser of a Gaussian mixture."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rf_jax.training import flow

WEIGHTS = jnp.array([0.3, 0.5, 0.2])
MEANS = jnp.array([[-1.0, 0.5], [0.8, -0.6], [0.2, 1.2]])
STDS = jnp.array([0.3, 0.2, 0.4])
FLOOR = 1e-4


def denoise(z, t):
    """E[x | z_t] of the mixture under unit noise: z [n, 2], t [n] -> [n, 2]."""
    t = t[:, None]
    variance = t**2 * STDS**2 + (1 - t) ** 2  # [n, 3]
    apart = z[:, None] - t[..., None] * MEANS  # [n, 3, 2]
    log = jnp.log(WEIGHTS) - jnp.log(variance) - 0.5 * (apart**2).sum(-1) / variance
    mean = MEANS + (t * STDS**2 / variance)[..., None] * apart
    return (jax.nn.softmax(log)[..., None] * mean).sum(1)


def velocity(z, t):
    return flow.velocity(denoise(z, t), z, t, FLOOR)


def integrate(method, z, times):
    def step(z, pair):
        t, t_next = (jnp.full(z.shape[:1], value) for value in pair)
        return flow.METHODS[method](velocity, z, t, t_next), None

    return jax.jit(lambda z: jax.lax.scan(step, z, (times[:-1], times[1:]))[0])(z)


@pytest.mark.parametrize(
    'method, steps, alpha',
    [('euler', 400, 1.0), ('euler', 400, 2.0), ('heun', 40, 1.0), ('heun', 40, 0.5)],
)
def test_sampler_recovers_the_mixture(method, steps, alpha):
    count = 40_000
    noise = jax.random.normal(jax.random.key(0), (count, 2))
    x = integrate(method, noise, flow.shift(flow.schedule(steps), alpha))
    mean = WEIGHTS @ MEANS
    within = (WEIGHTS * STDS**2).sum() * np.eye(2)
    covariance = within + (MEANS - mean).T @ (WEIGHTS[:, None] * (MEANS - mean))
    # Standard errors are below 0.005 (mean) and 0.007 (covariance); the rest is discretisation
    # error.
    np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.025)
    nearest = jnp.argmin(((x[:, None] - MEANS) ** 2).sum(-1) / STDS**2 + 4 * jnp.log(STDS), 1)
    np.testing.assert_allclose(jnp.bincount(nearest, length=3) / count, WEIGHTS, atol=0.03)


def error(method, steps):
    """Error of the solution at t = 0.9, before the floor and the last step matter."""
    noise = jax.random.normal(jax.random.key(1), (256, 2))
    right = integrate('heun', noise, jnp.linspace(0.0, 0.9, 2049))
    found = integrate(method, noise, jnp.linspace(0.0, 0.9, steps + 1))
    return float(jnp.sqrt(((found - right) ** 2).mean()))


def test_euler_is_first_order_and_heun_second():
    euler = error('euler', 64) / error('euler', 128)
    heun = error('heun', 64) / error('heun', 128)
    assert 1.8 < euler < 2.3
    assert 3.4 < heun < 4.8


def test_the_last_heun_step_is_an_euler_step():
    def unknown_at_one(z, t):
        return jnp.where((t >= 1)[..., None], jnp.nan, jnp.sin(z))

    z = jax.random.normal(jax.random.key(2), (5, 2))
    t, end = jnp.full(5, 0.8), jnp.ones(5)
    heun = flow.heun(unknown_at_one, z, t, end)
    np.testing.assert_array_equal(heun, flow.euler(unknown_at_one, z, t, end))
    before = flow.heun(unknown_at_one, z, t, jnp.full(5, 0.9))
    assert (np.asarray(before) != flow.euler(unknown_at_one, z, t, jnp.full(5, 0.9))).all()


def test_velocity_is_constant_on_the_path_and_bounded_near_its_end():
    keys = jax.random.split(jax.random.key(3), 3)
    x, noise = (jax.random.normal(key, (7, 4, 3)) for key in keys[:2])
    t = jax.random.uniform(keys[2], (7, 4)).at[0].set(0.99)
    z = flow.path(x, noise, t)
    for floor in (0.05, 0.5):
        v = flow.velocity(x, z, t, floor)
        free = t < 1 - floor
        np.testing.assert_allclose(v[free], (x - noise)[free], atol=1e-4)
        near = (1 - t)[~free, None] / floor
        np.testing.assert_allclose(v[~free], near * (x - noise)[~free], atol=1e-4)


def test_the_path_starts_at_noise_and_ends_at_the_image():
    x, noise = jnp.full((2, 3), 5.0), jnp.full((2, 3), -1.0)
    np.testing.assert_array_equal(flow.path(x, noise, jnp.array([0.0, 1.0])), [[-1] * 3, [5] * 3])


def test_loss_is_the_squared_error_of_the_velocity():
    keys = jax.random.split(jax.random.key(4), 3)
    x, noise, predicted = (jax.random.normal(key, (6, 8)) for key in keys)
    t = jnp.array([0.0, 0.3, 0.6, 0.94, 0.97, 1.0])
    z, floor = flow.path(x, noise, t), 0.05
    apart = flow.velocity(predicted, z, t, floor) - flow.velocity(x, z, t, floor)
    found = flow.loss(predicted, x, t, floor)
    np.testing.assert_allclose(found, (apart**2).mean(-1), rtol=1e-4)
    np.testing.assert_allclose(found[-1], ((predicted - x)[-1] ** 2).mean() / floor**2, rtol=1e-5)


@pytest.mark.parametrize('alpha', [0.5, 1.0, 3.0])
def test_shift_adds_a_constant_to_the_logit(alpha):
    def logit(t):
        return np.log(t) - np.log1p(-t)

    t = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(logit(np.asarray(flow.shift(t, alpha))), logit(t) - np.log(alpha),
                               atol=1e-4)  # fmt: skip
    np.testing.assert_array_equal(flow.shift(jnp.array([0.0, 1.0]), alpha), [0.0, 1.0])


def test_shift_grows_with_the_root_of_the_pixels():
    found = flow.shift_of(jnp.array([64 * 64, 128 * 128, 0]), 1.5, 64 * 64)
    np.testing.assert_allclose(found[:2], [1.5, 3.0], rtol=1e-6)
    assert np.isfinite(found).all() and found[2] > 0  # no NaN without an image either


def test_times_are_logit_normal():
    t = flow.sample_times(jax.random.key(5), (200, 200), -0.8, 0.6)
    logit = jnp.log(t) - jnp.log1p(-t)
    assert abs(logit.mean() + 0.8) < 0.02 and abs(logit.std() - 0.6) < 0.02


def test_schedule_is_even_from_noise_to_image():
    np.testing.assert_allclose(flow.schedule(4), [0, 0.25, 0.5, 0.75, 1])


def stochastic(name, noise, times, level, scale=1.0):
    def step(carry, pair):
        z, key = carry
        key, own = jax.random.split(key)
        t, t_next = (jnp.full(z.shape[:1], value) for value in pair)
        mean, std = flow.STOCHASTIC[name](denoise(z, t), z, t, t_next, level, scale, FLOOR)
        return (mean + std[:, None] * jax.random.normal(own, z.shape), key), None

    start = noise, jax.random.key(3)
    return jax.jit(lambda c: jax.lax.scan(step, c, (times[:-1], times[1:]))[0][0])(start)


@pytest.mark.parametrize('name', flow.STOCHASTIC)
def test_a_stochastic_step_without_noise_is_an_euler_step(name):
    z = jax.random.normal(jax.random.key(4), (64, 2))
    for t, t_next in ((0.0, 0.2), (0.4, 0.7), (0.97, 1.0)):
        t, t_next = jnp.full(64, t), jnp.full(64, t_next)
        x = denoise(z, t)
        mean, std = flow.STOCHASTIC[name](x, z, t, t_next, 0.0, 1.0, 0.05)
        euler = z + (t_next - t)[:, None] * flow.velocity(x, z, t, 0.05)
        np.testing.assert_allclose(mean, euler, rtol=1e-5, atol=1e-6)
        assert not std.any()


def test_the_marginals_of_the_sde_are_those_of_the_ode():
    """At t = 0.8, at every tenth of the quantiles of each axis."""
    noise = jax.random.normal(jax.random.key(0), (40_000, 2))
    times = jnp.linspace(0.0, 0.8, 401)
    share = jnp.linspace(0.1, 0.9, 9)
    ode = jnp.quantile(integrate('euler', noise, times), share, axis=0)
    assert float(abs(jnp.diff(ode, axis=0)).min()) > 0.05
    sde = jnp.quantile(stochastic('marginal', noise, times, 0.7), share, axis=0)
    np.testing.assert_allclose(sde, ode, atol=0.03)


def test_preserving_steps_keep_the_size_of_the_noise():
    """For a prediction that does not depend on z, the sample at t has exactly its marginal: mean
    t x, standard deviation (1 - t) noise_scale.
    """
    x, scale = 0.5, 2.0
    z = scale * jax.random.normal(jax.random.key(0), (200_000, 1))
    times = (0.0, 0.3, 0.55, 0.8)
    for number, (t, t_next) in enumerate(itertools.pairwise(times)):
        t, t_next = jnp.full(len(z), t), jnp.full(len(z), t_next)
        mean, std = flow.preserving_step(jnp.full(z.shape, x), z, t, t_next, 0.8, scale, FLOOR)
        z = mean + std[:, None] * jax.random.normal(jax.random.key(number + 1), z.shape)
        np.testing.assert_allclose(z.mean(), float(t_next[0]) * x, atol=0.02)
        np.testing.assert_allclose(z.std(), (1 - float(t_next[0])) * scale, rtol=0.01)


def test_the_log_density_is_that_of_the_normal_distribution():
    z = jax.random.normal(jax.random.key(0), (5, 3))
    found = flow.log_density(z, 0.5 * z, jnp.full(5, 0.7))
    normal = jax.scipy.stats.norm.logpdf(z, 0.5 * z, 0.7).mean(-1)
    np.testing.assert_allclose(found, normal, rtol=1e-5)
