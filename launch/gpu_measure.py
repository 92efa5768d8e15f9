"""How the items of the GPU trial measure and report: one JSON line per result."""

import json
import statistics
import time

import jax

from rf_jax.runtime import hardware


def report(what: str, settings: str, **values) -> None:
    print(json.dumps({'what': what, 'settings': settings, **values}), flush=True)


def summary(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:160]


def seconds(run, times: int = 10) -> float:
    """Median of `times` runs, after one warm-up run that compiles."""
    jax.block_until_ready(run())
    durations = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run())
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def gigabytes(number) -> str:
    return '' if number is None else f'{number / 1e9:.1f} GB'


def share(done: float, took: float) -> str:
    peak = hardware.peak_flops(jax.devices()[0])
    return f'{done / took / peak:.1%}' if peak else 'peak unknown'


def counted_memory(compiled) -> dict[str, str]:
    """Memory by the compiler: the sum of all buffers, and its own peak."""
    counted = compiled.memory_analysis()
    total = counted.argument_size_in_bytes + counted.output_size_in_bytes
    total += counted.temp_size_in_bytes - counted.alias_size_in_bytes
    return {
        'counted: arguments, outputs, temporaries': gigabytes(total),
        "counted: compiler's peak": gigabytes(getattr(counted, 'peak_memory_in_bytes', None)),
    }
