"""The persistent compilation cache."""

import jax

from rf_jax.runtime import paths

CACHE = '~/.cache/rf_jax'


def use_cache(folder: str) -> None:
    """Caches compiled programs in `folder` across runs; '' disables it. JAX reads them in every
    process and writes them in the first one. Raises UserError for the address of a bucket.
    """
    if folder:
        jax.config.update(
            'jax_compilation_cache_dir', str(paths.local(folder, 'compilation_cache'))
        )
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def use_local_cache() -> None:
    """Uses the cache that JAX is already configured with, else CACHE.

    For opening a trained run: the cache folder in its config may belong to another machine.
    """
    if not jax.config.jax_compilation_cache_dir:
        use_cache(CACHE)
