"""A host plans its lane of a billion samples from the index alone, in little memory."""

import tracemalloc

import numpy as np
import pytest

from configs import paper
from rf_jax.data import layout, source_list
from rf_jax.data.pipeline import Batches
from rf_jax.data.tokenizer import load_tokenizer
from rf_jax.planning import packing_stats, synthetic_set


def plan_of(sources, config):
    config.data.sources = sources
    (source,) = source_list.build(sources, config.data.max_pixels)
    return Batches(config, [source], load_tokenizer(source.tokenizer), range(4)).plan


@pytest.mark.slow
@pytest.mark.parametrize('kind', packing_stats.KINDS)
def test_a_host_of_128_plans_a_billion_samples(tmp_path, kind):
    config = paper.get_config('joint')
    lanes = config.data.batch_size
    assert config.data.lanes == -1
    sources = synthetic_set.write(f'{tmp_path}/set', kind, 10**9, lanes)
    tokens = sum(config.data.capacity[name] for name in layout.STREAMS)
    capacity, _ = packing_stats.recommended(plan_of(sources, config), tokens)
    config.data.capacity.update(dict(zip(layout.SIZES, capacity.tolist())))
    tracemalloc.start()
    plan = plan_of(sources, config)
    plan.window(0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.3e9  # bytes; the pages of the index that it has touched are 8 MB of 16 GB
    assert packing_stats.measure(plan, 50_000).row_fill >= 0.97
    counts = set(plan.mixture.counts.values())
    assert counts == {10**9 // 64 // lanes * 64}


def test_the_index_is_a_function_of_the_seed(tmp_path):
    for name in 'ab':
        synthetic_set.write(f'{tmp_path}/{name}', 'laion', 70_000, 2)
    files = sorted(path.name for path in (tmp_path / 'a').iterdir())
    for name in files:
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    rows = synthetic_set.samples_of('coco', np.arange(5), 0)
    np.testing.assert_array_equal(rows, synthetic_set.samples_of('coco', np.arange(9), 0)[:5])
    assert (rows['offset'][1:] == np.cumsum(rows['blocks'])[:-1]).all()
