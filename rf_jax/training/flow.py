"""Flow matching on one page: path, times, conversions, loss, ODE and SDE steps. No network here.

z_t = t x + (1 - t) e with e ~ N(0, noise_scale^2): t = 0 is noise, t = 1 the image. The network
predicts x; the loss and the solver steps use the velocity v = x - e (JiT, arXiv 2511.13720; paper,
section 3.2). Times t broadcast against x [..., C] after `t[..., None]` where a docstring says
[...].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def path(x: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """z_t for x, noise [..., C] and t [...]."""
    t = t[..., None]
    return t * x + (1 - t) * noise


def velocity(x: jax.Array, z: jax.Array, t: jax.Array, floor: float) -> jax.Array:
    """v = (x - z) / max(1 - t, floor)."""
    return (x - z) / jnp.maximum(1 - t, floor)[..., None]


def loss(predicted: jax.Array, x: jax.Array, t: jax.Array, floor: float) -> jax.Array:
    """Mean over C of |v_predicted - v|^2, both with the floor: [..., C] and t [...] -> [...].

    Equals |x_predicted - x|^2 / max(1 - t, floor)^2: z cancels; the weight is at most 1 / floor^2.
    """
    error = jnp.mean((predicted - x) ** 2, -1)
    return error / jnp.maximum(1 - t, floor) ** 2


def sample_times(key: jax.Array, shape, mean: float, std: float) -> jax.Array:
    """t = sigmoid(N(mean, std^2)) before any shift."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, shape))


def shift(t: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """t / (t + alpha (1 - t)): logit(t) falls by log(alpha) (SD3, section 5.3.2, in our time)."""
    return t / (t + alpha * (1 - t))


def shift_of(pixels: jax.Array, alpha: float, base_pixels: int) -> jax.Array:
    """alpha sqrt(pixels / base_pixels): larger images need more noise for the same SNR."""
    return alpha * jnp.sqrt(jnp.maximum(pixels, 1) / base_pixels)


def schedule(steps: int) -> jax.Array:
    """float32 [steps + 1]: evenly spaced times from 0 to 1, before any shift."""
    return jnp.linspace(0.0, 1.0, steps + 1)


Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def euler(v: Velocity, z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """One first-order step of dz/dt = v(z, t) from t to t_next [...]."""
    return z + (t_next - t)[..., None] * v(z, t)


def heun(v: Velocity, z: jax.Array, t: jax.Array, t_next: jax.Array) -> jax.Array:
    """One second-order step; the last one (t_next = 1) is Euler's, as v is undefined at t = 1."""
    first = v(z, t)
    step = (t_next - t)[..., None]
    ahead = z + step * first
    last = (t_next >= 1.0)[..., None]
    second = v(ahead, jnp.where(t_next >= 1.0, t, t_next))
    return jnp.where(last, ahead, z + step * 0.5 * (first + second))


METHODS = {'euler': euler, 'heun': heun}


def marginal_step(
    x: jax.Array,
    z: jax.Array,
    t: jax.Array,
    t_next: jax.Array,
    level: float,
    noise_scale: float,
    floor: float,
) -> tuple[jax.Array, jax.Array]:
    """One step of the SDE with the marginals of the ODE: (mean [..., C], standard deviation [...]).

    x: the prediction at z. dz = [v + sigma^2 / 2 score] dt + sigma dw with sigma = level
    noise_scale sqrt((1 - t) / t), at t = 0 with t_next (Flow-GRPO, arXiv 2505.05470, equations 8
    and 9, in our time).
    """
    v, left = velocity(x, z, t, floor), jnp.maximum(1 - t, floor)
    noise = z - t[..., None] * v  # the prediction of e
    sigma = level * noise_scale * jnp.sqrt(left / jnp.where(t > 0, t, t_next))
    score = -noise / (left * noise_scale**2)[..., None]
    step = t_next - t
    mean = z + step[..., None] * (v + 0.5 * (sigma**2)[..., None] * score)
    return mean, sigma * jnp.sqrt(step)


def preserving_step(
    x: jax.Array,
    z: jax.Array,
    t: jax.Array,
    t_next: jax.Array,
    level: float,
    noise_scale: float,
    floor: float,
) -> tuple[jax.Array, jax.Array]:
    """The same by coefficient-preserving sampling (arXiv 2509.05952): the noise of the sample at
    t_next has its right size, part of it fresh. `level` in [0, 1].
    """
    v = velocity(x, z, t, floor)
    clean, noise = z + (1 - t)[..., None] * v, z - t[..., None] * v
    fresh = (1 - t_next) * jnp.sin(level * jnp.pi / 2)
    kept = jnp.sqrt((1 - t_next) ** 2 - fresh**2)
    return t_next[..., None] * clean + kept[..., None] * noise, noise_scale * fresh


STOCHASTIC = {'marginal': marginal_step, 'preserving': preserving_step}


def log_density(z: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Of N(mean, std^2), per value: mean over C, [..., C] and std [...] -> [...]."""
    error = jnp.mean((z - mean) ** 2, -1)
    return -0.5 * error / std**2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
