"""The persistent cache of compiled programs."""

import os

import jax


def use_cache(folder: str) -> None:
    """Keeps compiled programs between runs in `folder`; '' turns it off."""
    if folder:
        jax.config.update('jax_compilation_cache_dir', os.path.expanduser(folder))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
