"""Weights of published sizes, as sparse files: what is read, and how much memory that takes."""

import json
import math
import os
import subprocess
import sys

import pytest
import topologies
from weight_folders import DINOV3, QWEN3, QWEN3_MOE, specs

from configs import paper
from rf_jax.interop import writing
from rf_jax.runtime import checkpoint_files, mesh
from rf_jax.training import initial_weights, jitted, weight_sources

pytestmark = pytest.mark.slow

QWEN3_30B = QWEN3_MOE | {
    'vocab_size': 151_936, 'hidden_size': 2048, 'intermediate_size': 6144,
    'num_hidden_layers': 48, 'num_attention_heads': 32, 'num_key_value_heads': 4, 'head_dim': 128,
    'num_experts': 128, 'num_experts_per_tok': 8, 'moe_intermediate_size': 768,
}  # fmt: skip
DINOV3_H = DINOV3 | {
    'hidden_size': 1280, 'intermediate_size': 5120, 'num_hidden_layers': 32,
    'num_attention_heads': 20, 'use_gated_mlp': True, 'hidden_act': 'silu',
}  # fmt: skip
# 2.0 GB in float32.
QWEN3_HALF = QWEN3 | {
    'vocab_size': 32_000, 'hidden_size': 1024, 'intermediate_size': 3072, 'num_hidden_layers': 27,
    'num_attention_heads': 16, 'num_key_value_heads': 8, 'head_dim': 128, 'torch_dtype': 'float32',
}  # fmt: skip


def write_sparse(folder, config, limit=4_000_000_000):
    """A folder of a published size with zeros that take no room on the disk."""
    folder.mkdir()
    files = writing.divided(specs(config), limit)
    for name, own in files.items():
        beginning = writing.header(own)
        (folder / name).write_bytes(beginning)
        os.truncate(folder / name, len(beginning) + sum(spec.nbytes for spec in own))
    (folder / 'model.safetensors.index.json').write_text(writing.index(files))
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize('stage', ['alignment', 'joint'])
def test_a_host_of_a_pod_reads_its_shards_of_qwen3_30b_alone(stage, tmp_path, monkeypatch):
    """18,867 tensors and the encoder, checked and planned without reading, on 512 chips."""
    text = write_sparse(tmp_path / 'Qwen3-30B-A3B', QWEN3_30B)
    encoder = write_sparse(tmp_path / 'dinov3-vith16plus', DINOV3_H)
    monkeypatch.setattr('mmap.mmap', None)  # no data is read
    config = paper.get_config(stage)
    config.initialise_from = f'hf:{text},hf:{encoder}'
    initial_weights.check(config)
    sources = [kind.open(folder) for kind, folder, _ in weight_sources.listed(config)]
    assert len(sources[0].pretrained.folder.entries) == 48 * (9 + 3 * 128) + 3
    devices = topologies.devices('v5p:8x8x8', 1)
    run = jitted.build(config, 151_936, mesh.make_mesh(config.mesh, devices), 'tpu')
    origins = initial_weights.plan(run.abstract, sources, config)
    shapes = checkpoint_files.flatten(run.abstract)
    born = {path.split('/')[1] for path in shapes.keys() - origins.keys()
            if path.startswith('params/')}  # fmt: skip
    assert born == {'connector', 'representation_embed', 'representation_head', 'patch_in',
                    'patch_out'}  # fmt: skip
    for number, source in enumerate(sources):
        wanted = {origin.path: shapes[to] for to, origin in origins.items()
                  if origin.source == number}  # fmt: skip
        size = {path: source.pretrained.itemsize(path.removeprefix('params/')) for path in wanted}
        whole = sum(size[path] * leaf.size for path, leaf in wanted.items())
        shard = sum(
            size[path] * math.prod(leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in wanted.items()
        )
        for process in (0, 77, 127):
            amount = source.amount(wanted, process)
            print(f'{source}: {amount:,} of {whole:,} bytes, shards of 4 chips {4 * shard:,}')
            assert amount <= 1.2 * 4 * shard
            assert amount < whole / 30


LOAD = """
import json, sys, threading
import jax
from configs import base
from rf_jax.runtime import mesh, sharding
from rf_jax.training.weight_sources import Downloaded
from pathlib import Path

def resident():
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith('VmRSS'))

config = base.get_config()
mesh_ = mesh.make_mesh(config.mesh, jax.devices())
source = Downloaded(Path(sys.argv[1]))
leaves = source.pretrained.leaves
abstract = {path: jax.ShapeDtypeStruct(leaf.shape, 'float32') for path, leaf in leaves.items()}
where = sharding.shardings(abstract, mesh_, config.sharding)
wanted = {f'params/{path}': jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[path])
          for path, leaf in abstract.items()}
smallest = min(wanted, key=lambda path: wanted[path].size)
jax.block_until_ready(source.read({smallest: wanted[smallest]}))  # what jax itself takes
before, peak, done = resident(), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], resident())

thread = threading.Thread(target=watch)
thread.start()
found = source.read(wanted)
jax.block_until_ready(found)
done.set()
thread.join()
shards = [shard.data.nbytes for array in found.values() for shard in array.addressable_shards]
given = found['params/text_embed/table'].addressable_shards[0].data
where = given.unsafe_buffer_pointer()
again = jax.jit(lambda x: x + 1, donate_argnums=0)(given)
reused = where == again.unsafe_buffer_pointer()
print(json.dumps([peak[0] - before, sum(shards), max(shards), reused]))
"""


def test_memory_while_loading(tmp_path):
    """2 GB in five files onto eight devices: the shards, and at most two of the largest more. No
    shard is borrowed from the host.
    """
    folder = write_sparse(tmp_path / 'model', QWEN3_HALF, 450_000_000)
    assert len(list(folder.glob('*.safetensors'))) == 5
    done = subprocess.run([sys.executable, '-c', LOAD, str(folder)], capture_output=True,
                          text=True, env=os.environ)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    peak, shards, largest, reused = json.loads(done.stdout.splitlines()[-1])
    print(f'peak {peak:,}, shards {shards:,}, largest {largest:,}')
    assert shards > 1.9e9
    assert shards < peak <= shards + 2 * largest
    assert reused
