"""Fixtures of the study's tests: one study is trained once for all files and workers."""

import fcntl
import os
import shutil

import pytest
import small_study

from rf_jax.generation.sampler import Sampler
from rf_jax.study import runner


@pytest.fixture(scope='module')
def built():
    """Names of the runs built so far, on one device."""
    with small_study.one_device() as names:
        yield names


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """(config, workdir) of a study that ran without interruption; shared by all workers."""
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:  # every worker has a folder of its own in a common one
        folder = folder.parent
    folder = folder / 'trained_study'
    folder.mkdir(exist_ok=True)
    config, workdir = small_study.small(folder), folder / 'study'
    with (folder / 'lock').open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # one worker trains it, the others wait
        if not (folder / 'done').exists():
            with small_study.one_device():
                assert runner.run(config, workdir, small_study.fake_score)
            (folder / 'done').touch()
    return config, workdir


@pytest.fixture(scope='module')
def finished(trained, tmp_path_factory):
    """(config, workdir) of a copy of the trained study, which the tests of a file may change."""
    config, workdir = trained
    folder = tmp_path_factory.mktemp('finished') / 'study'
    shutil.copytree(workdir, folder)
    return config, folder


@pytest.fixture(scope='module')
def arm(trained):
    """A sampler of the arm `half`."""
    _, workdir = trained
    return Sampler.load(workdir / 'half-s0')
