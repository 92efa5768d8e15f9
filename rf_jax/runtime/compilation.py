"""The persistent cache of compiled programs."""

import os

import jax

CACHE = '~/.cache/rf_jax'


def use_cache(folder: str) -> None:
    """Keeps compiled programs between runs in `folder`; '' turns it off."""
    if folder:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def use_cache_of_this_machine() -> None:
    """For a run that is opened: the cache that JAX already has (JAX_COMPILATION_CACHE_DIR, or an
    earlier `use_cache`), else CACHE. What the run was trained with may be somebody else's folder.
    """
    if not jax.config.jax_compilation_cache_dir:
        use_cache(CACHE)
