"""Keys of jax.random as a function of (seed, name, step): no random state is ever saved."""

import jax

from rf_jax.runtime.rng import fold


def random_key(seed: int, name: str, step: jax.Array | int = 0) -> jax.Array:
    """The key of `name` at `step`; other names, seeds and steps give unrelated keys."""
    return jax.random.fold_in(jax.random.key(fold(seed, name) % 2**32), step)
