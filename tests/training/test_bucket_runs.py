"""Runs in buckets of real emulators: killed, resumed, kept, evaluated, started from."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import emulators
import jax
import numpy as np
import pytest
from shrink import tiny_run

from rf_jax.data import source_list
from rf_jax.evaluation import run_report
from rf_jax.evaluation.inspection import Inspector
from rf_jax.runtime import checkpoint, checkpoint_folder, paths, storage
from rf_jax.training import train_loop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 12, 3


FIELDS = {
    'steps': STEPS,
    'checkpoint.every': EVERY,
    'checkpoint.keep': 2,
    'log.every': 1,
    'log.samples_every': 0,
}
PROGRAM = """
import json, sys
from shrink import tiny_run
from rf_jax.training import train_loop
run = tiny_run(sys.argv[1], json.loads(sys.argv[2]))
train_loop.train(run)
"""


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('programs')


def train(workdir, cache) -> subprocess.Popen:
    """Trains the tiny run in another process."""
    fields = json.dumps(FIELDS | {'compilation_cache': str(cache)})
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(workdir), fields],
        env=os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT}/tests'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
    finish(train(workdir, cache))
    return workdir


def losses(workdir):
    """[(step, loss)] of every line."""
    lines = map(json.loads, emulators.metric_lines(workdir).splitlines())
    return [(line['step'], line['loss']) for line in lines if 'loss' in line]


def state(workdir):
    step, tree = checkpoint.restore_numpy(workdir / 'checkpoints')
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return step, {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in leaves}


def test_a_run_in_a_bucket_is_killed_resumed_evaluated_and_started_from(
    bucket, tmp_path, cache, undisturbed
):
    workdir = paths.anywhere(f'{bucket[0]}/{tmp_path.name}/run', '--workdir')
    first = train(workdir, cache)
    while not checkpoint_folder.steps(workdir / 'checkpoints'):
        assert first.poll() is None, first.communicate()[0][-3000:]
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = checkpoint_folder.steps(workdir / 'checkpoints')[-1]
    assert 0 < done < STEPS, 'ended before it was killed: raise STEPS'
    assert [step for step, _ in losses(workdir) if step <= done] == list(range(1, done + 1))

    finish(train(workdir, cache))
    assert state(workdir) == state(undisturbed)
    assert losses(workdir) == losses(undisturbed)
    kept = checkpoint_folder.steps(undisturbed / 'checkpoints')
    assert checkpoint_folder.steps(workdir / 'checkpoints') == kept == [STEPS - EVERY, STEPS]
    assert storage.names(workdir / 'checkpoints') == sorted(map(str, kept))
    assert len(json.loads(storage.read(workdir / 'goodput.json'))['attempts']) == 2
    for name in ('tokenizer.model', 'parameters.txt', 'version.json'):
        assert storage.read(workdir / name) == storage.read(undisturbed / name)
    assert len(storage.names(workdir / 'tensorboard')) == 2

    if workdir.as_uri().startswith('gs://'):  # what follows is the same for s3://, and takes long
        evaluate(workdir)
        start_from(workdir, tmp_path / 'next')


def evaluate(workdir):
    trained = Inspector.load(workdir)
    data = trained.sampler.config.data
    (source,) = source_list.build(data.sources, data.max_pixels)
    run_report.evaluate(trained, source, workdir / 'scores', 2, 0)
    assert storage.names(workdir / 'scores') == ['grid.png', 'result.json']


def start_from(workdir, folder):
    start = {'initialise_from': str(workdir), 'tokenizer.path': f'{workdir}/tokenizer.model'}
    run = tiny_run(folder, FIELDS | start)
    assert run.tokenizer.model_bytes == storage.read(workdir / 'tokenizer.model')
    step, started = train_loop.start_state(
        run, checkpoint.Checkpoints(run.workdir / 'checkpoints', 1, 1)
    )
    saved = checkpoint.restore_numpy(workdir / 'checkpoints', only='ema')[1]['ema']
    assert step == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(started.ema), saved)
