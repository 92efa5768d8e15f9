"""Time the train step: `python -m rf_jax.benchmark [--config=configs/emoji.py] [--steps=30]`.

Prints step time, model GFLOP/s and its share of the matrix-product peak measured in the same run,
input wait, compile time and row fill. Speed is measured here, never in a test.
"""

import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from rf_jax.models import flops
from rf_jax.runtime import cli, metrics
from rf_jax.training import step_metrics, train_loop

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'What to time; configs/emoji.py by default.'
)
_STEPS = flags.DEFINE_integer(
    'steps', 30, 'Steps to time, after three warm-up steps.', lower_bound=1
)


def peak_flops(dtype, repeats: int = 5) -> float:
    """FLOP/s of the fastest of `repeats` square matrix products on one device.

    On an accelerator, a chain of large products is timed: a single one takes less time than its
    launch.
    """
    side, chain = (2048, 1) if jax.default_backend() == 'cpu' else (8192, 32)
    product = jax.jit(lambda a: jax.lax.fori_loop(0, chain, lambda _, x: x @ a, a))
    a = jnp.full((side, side), 1 / side, dtype)
    product(a).block_until_ready()

    def seconds():
        began = time.perf_counter()
        product(a).block_until_ready()
        return time.perf_counter() - began

    return chain * 2 * side**3 / min(seconds() for _ in range(repeats))


def time_steps(run: train_loop.Run, steps: int) -> dict[str, float]:
    """Medians over `steps` steps of the training loop."""
    state = run.initialise()
    batches = run.batches.iterate(0, steps + 3)
    began = time.perf_counter()
    batch = next(batches)
    compiled = run.train_step.lower(state, run.put(batch)).compile()
    compile_seconds = time.perf_counter() - began
    durations, waits, fills = [], [], []
    for number in range(steps + 3):
        start = time.perf_counter()
        batch = next(batches) if number else batch
        waits.append(time.perf_counter() - start)
        state, values = compiled(state, run.put(batch))
        jax.block_until_ready(values)
        durations.append(time.perf_counter() - start)
        fills.append(step_metrics.fill(batch, run.config.data.capacity))
    return {
        'seconds': statistics.median(durations[3:]),
        'wait': sum(waits[3:]) / sum(durations[3:]),
        'compile': compile_seconds,
        'fill': statistics.mean(f['fill'] for f in fills),
    }


def main(argv):
    del argv
    config = _CONFIG.value
    with tempfile.TemporaryDirectory() as workdir:
        run = train_loop.build(config, workdir)
        before = peak_flops(config.compute_dtype)
        timed = time_steps(run, _STEPS.value)
        # Virtual CPU devices share the cores of one CPU.
        devices = 1 if jax.default_backend() == 'cpu' else run.mesh.size
        peak = max(before, peak_flops(config.compute_dtype)) * devices
    needed = flops.train_step(config, run.tokenizer.size, flops.visible_pairs(config))
    rate = needed / timed['seconds']
    print(f'step time              {timed["seconds"] * 1e3:10.1f} ms')
    print(f'rows per second        {config.data.batch_size / timed["seconds"]:10.1f}')
    print(f'model                  {rate / 1e9:10.1f} GFLOP/s')
    print(f'matrix-product peak    {peak / 1e9:10.1f} GFLOP/s ({config.compute_dtype})')
    print(f'share of the peak      {rate / peak:10.1%}')
    print(f'input wait             {timed["wait"]:10.1%}')
    print(f'compile (or its cache) {timed["compile"]:10.1f} s')
    print(f'row fill               {timed["fill"]:10.1%}')
    print(f'peak memory            {metrics.peak_memory_gb():10.1f} GB')


if __name__ == '__main__':
    cli.run(main, config='configs/emoji.py')
