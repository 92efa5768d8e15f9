"""A train step as XLA compiles it for GPUs, for machines without JAX's plugin for CUDA.

`python tests/gpu_programs.py` compiles it for eight H100 and writes tests/recorded/gpu_step.txt.gz:
its memory analysis as JSON, then the text of the program.
"""

import gzip
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rf_jax.models.attention import masks
from rf_jax.models.attention import triton as attention
from rf_jax.models.attention.reference import Cudnn
from rf_jax.models.moe import triton as experts
from rf_jax.planning import ahead_of_time, topology
from rf_jax.runtime.mesh import make_mesh

FILE = Path(__file__).parent / 'recorded' / 'gpu_step.txt.gz'
HERE = importlib.util.find_spec('jax_cuda12_plugin') is not None
CUDNN = HERE and importlib.util.find_spec('nvidia') is not None  # with CUDA's other libraries
LAYERS, ROWS, LENGTH, HEADS, HEAD_DIM = 6, 16, 256, 4, 64
D = HEADS * HEAD_DIM
MEMORY = ('argument_size', 'output_size', 'alias_size', 'temp_size')


def loss(params, x, mask):
    def layer(x, p):
        q, k, v = jnp.split((x @ p['qkv']).reshape(*x.shape[:2], HEADS, -1), 3, -1)
        return x + Cudnn()(q, k, v, mask).reshape(x.shape) @ p['output'], None

    return jnp.square(jax.lax.scan(layer, x, params)[0].astype(jnp.float32)).mean()


def step(params, x, mask):
    gradients = jax.grad(loss)(params, x, mask)
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients)


def compiled(name: str):
    """The step for the devices of a topology, its parameters and rows sharded over them."""
    sizes = {'data': 1, 'fsdp': -1, 'expert': 1, 'tensor': 1, 'context': 1}
    mesh = make_mesh(sizes, topology.devices(name))

    def array(dims, dtype, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    params = {
        'qkv': array((LAYERS, D, 3 * D), jnp.bfloat16, None, 'fsdp'),
        'output': array((LAYERS, D, D), jnp.bfloat16, None, 'fsdp'),
    }
    rows = ('data', 'fsdp')
    x = array((ROWS, LENGTH, D), jnp.bfloat16, rows)
    mask = array((ROWS, LENGTH, LENGTH), jnp.bool_, rows)
    program = jax.jit(step, donate_argnums=0)
    device = mesh.devices.flat[0]
    return ahead_of_time.compile_program('step', program, (params, x, mask), device).program


def kernels(name: str, dtype) -> str:
    """The text of our kernels, forward and backward, for the first device of a topology."""
    device = topology.devices(name)[0]
    sharding = jax.sharding.SingleDeviceSharding(device)

    def array(dims, dtype=dtype):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    def run(tokens, q, k, x, w, sizes):
        form = attention.Triton()
        prepared = form.prepare(tokens, tokens)
        out, pull = jax.vjp(lambda q, k: form(q, k, k, prepared), q, k)
        y, pull_y = jax.vjp(lambda x, w: experts.product(x, w, sizes), x, w)
        return pull(out), pull_y(y)

    tokens = {field: array((2, 300), jnp.int32) for field in masks.FIELDS}
    arguments = (
        array((2, 300, 4, 64)),
        array((2, 300, 2, 64)),
        array((500, 128)),
        array((8, 128, 96)),
    )
    program = ahead_of_time.compile_program(
        'kernels', jax.jit(run), (tokens, *arguments, array((8,), jnp.int32)), device
    )
    return program.program.as_text()


def recorded() -> tuple[dict[str, int], str]:
    """(memory analysis, text) of the recorded step."""
    memory, text = gzip.decompress(FILE.read_bytes()).decode('utf-8').split('\n', 1)
    return json.loads(memory), text


def main() -> None:
    jax.config.update('jax_platforms', 'cpu')
    program = compiled('h100:8')
    analysis = program.memory_analysis()
    memory = {f'{name}_in_bytes': getattr(analysis, f'{name}_in_bytes') for name in MEMORY}
    head, _, rest = program.as_text().partition('\n')
    # Without the table of source files, which has the paths of the machine.
    text = f'{json.dumps(memory)}\n{head}\n{rest[rest.index("%") :]}'
    FILE.write_bytes(gzip.compress(text.encode('utf-8'), mtime=0))
    print(memory, FILE.stat().st_size, 'bytes')


if __name__ == '__main__':
    main()
