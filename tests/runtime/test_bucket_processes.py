"""Two processes save and restore one checkpoint in a bucket, each its own shards."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys

from rf_jax.runtime import checkpoint, distributed, paths

distributed.start()
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

workdir = paths.anywhere(sys.argv[1], '--workdir')
distributed.check_shared(workdir)
rows = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), PartitionSpec('data'))
whole = np.arange(32.0, dtype=np.float32).reshape(8, 4)
state = {'x': jax.make_array_from_callback((8, 4), rows, lambda index: whole[index])}
checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', every=1, keep=2)
for step in (1, 2, 3):
    checkpoints.save(step, state)
checkpoints.ensure(3, state)
like = {'x': jax.ShapeDtypeStruct((8, 4), np.float32, sharding=rows)}
step, restored = checkpoints.restore(like)
for shard in restored['x'].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
print('restored', step, len(restored['x'].addressable_shards), checkpoint.has_step(workdir, 2))
checkpoints.close()
distributed.finish()
"""


def test_two_processes_save_and_restore(bucket, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as free:
        address = f'127.0.0.1:{free.getsockname()[1]}'
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', PROGRAM, f'{bucket[0]}/{tmp_path.name}'],
            env={k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
            | {'PYTHONPATH': str(ROOT), 'RF_JAX_COORDINATOR': address}
            | {'RF_JAX_PROCESS': str(i), 'RF_JAX_PROCESSES': '2'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and 'restored 3 1 True' in output, output[-3000:]
