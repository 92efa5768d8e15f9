"""How the items of the trial of a GPU measure, and how they tell it: one JSON line a result."""

import json
import statistics
import time

import jax

from rf_jax.runtime import hardware


def tell(what: str, settings: str, **values) -> None:
    print(json.dumps({'what': what, 'settings': settings, **values}), flush=True)


def words_of(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:160]


def seconds(run, times: int = 10) -> float:
    """Median of some runs, after one that compiles and warms up."""
    jax.block_until_ready(run())
    found = []
    for _ in range(times):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def gigabytes(number) -> str:
    return '' if number is None else f'{number / 1e9:.1f} GB'


def share(done: float, took: float) -> str:
    peak = hardware.peak_flops(jax.devices()[0])
    return f'{done / took / peak:.1%}' if peak else 'peak not known'


def counted_memory(compiled) -> dict[str, str]:
    """By the compiler: all buffers as if they lived at once, and its own peak."""
    counted = compiled.memory_analysis()
    total = counted.argument_size_in_bytes + counted.output_size_in_bytes
    total += counted.temp_size_in_bytes - counted.alias_size_in_bytes
    return {
        'counted: arguments, outputs, temporaries': gigabytes(total),
        "counted: compiler's peak": gigabytes(getattr(counted, 'peak_memory_in_bytes', None)),
    }
