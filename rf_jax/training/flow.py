"""Flow matching on one page: path, times, conversions, loss, solver steps. No network here.

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
