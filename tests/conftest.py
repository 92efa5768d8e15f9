"""Every test runs on eight pretended CPU devices; this must stand before jax is imported."""

import os

from rf_jax.runtime.environment import give_threads

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
give_threads(os.environ)
