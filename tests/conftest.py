"""Every test runs on eight virtual CPU devices; this must be set before jax is imported."""

import os
from importlib.metadata import version

import pytest

from rf_jax.runtime import exit_codes
from rf_jax.runtime.environment import one_blas_thread, set_cpu_threads

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
if version('jaxlib').startswith('0.10.'):  # XLA ends a process that gives a flag it does not know
    # Programs of `shrink.quick_compilation` are compiled in 4 s in place of 10 s.
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
set_cpu_threads(os.environ)
one_blas_thread(os.environ)


@pytest.fixture(autouse=True)
def _no_progress_yet(monkeypatch):
    """Exit codes depend on what this process has saved, and other tests have saved a lot."""
    monkeypatch.setattr(exit_codes, '_progress', False)
    monkeypatch.setattr(exit_codes, '_newest', {})


@pytest.fixture(scope='module')
def quick():
    """Programs of this module are compiled in half the time and run slower."""
    from shrink import quick_compilation  # imports jax

    with quick_compilation():
        yield
