"""The GPU trial runs to its end unattended; here on CPU with tiny shapes."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import paper
from rf_jax.models.attention import masks, select

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'launch'))
import gpu_measure  # noqa: E402

pytestmark = pytest.mark.slow


def trial(*flags):
    """(line about the machine, {what: rows of the table as {column: cell}})."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHON': sys.executable}
    environment.pop('XLA_FLAGS', None)
    found = subprocess.run(
        [ROOT / 'launch' / 'gpu_trial.sh', '--tiny', *flags],
        env=environment, capture_output=True, text=True, cwd=ROOT.parent,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    head, empty, names, line, *rows = found.stdout.splitlines()
    assert not empty and set(line) <= set('| -'), 'one table, after one line'
    columns = [cell.strip() for cell in names.strip('|').split('|')]
    by_item = {}
    for row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row[1:-1].split('|')), strict=True))
        by_item.setdefault(cells['what'], []).append(cells)
    return head, by_item


@pytest.mark.nightly
def test_the_trial_measures_reports_failures_continues_and_resumes(tmp_path):
    record = f'--record={tmp_path / "trial.jsonl"}'
    items = 'train 0.3B,packed cudnn,packed triton,attention pallas'
    head, lines = trial('--seconds=3000', f'--only={items}', record)
    assert re.search(r'^cpu, .*jax \d.*tiny shapes: not a benchmark.*\d{4}-\d\d-\d\d$', head)
    assert list(lines) == items.split(','), 'in the requested order'
    (train,) = lines['train 0.3B']
    assert re.search(r'ms per step', train['time']) and re.search(r'tokens/s', train['rate'])
    assert train['counted: arguments, outputs, temporaries'].endswith('GB')
    assert train["counted: compiler's peak"].endswith('GB')
    assert all('cuDNN is not detected' in line['settings'] for line in lines['packed cudnn'])
    half, full = (float(line['largest error']) for line in lines['packed triton'])
    assert half < 0.02 and full < 1e-5, 'kernels of other libraries use the same mask as ours'
    assert 'another platform' in lines['attention pallas'][0]['settings']

    kept = [json.loads(line)['item'] for line in (tmp_path / 'trial.jsonl').open()]
    assert kept == items.split(',')
    _, again = trial('--seconds=55', '--only=packed triton,train 1.7B', record)
    assert again['packed triton'] == lines['packed triton'], 'from the record, not measured again'
    assert 'not started' in again['train 1.7B'][0]['settings'], 'it would not finish in time'


def arrays_within(jaxpr):
    """Shapes of all arrays of a program, including its loops, branches and calls."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, 'shape'))
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from arrays_within(inner)


@pytest.mark.parametrize('name', ['auto', 'blockwise', 'triton', 'packed triton', 'reference'])
def test_attention_on_rows_of_16k_materialises_no_full_mask_on_a_gpu(name):
    length, config = 16_384, paper.get_config('joint/0.6B')
    segment = gpu_measure.segments(length)
    if name == 'packed triton':
        product = partial(gpu_measure._run_packed, gpu_measure.triton, segment)
    else:
        attention = select.IMPLEMENTATIONS[name](config.model.attention, 'gpu')
        tokens = gpu_measure.text_integers(segment)
        product = partial(gpu_measure._run, attention, tokens)
    inputs = [jax.ShapeDtypeStruct((1, length, n, 128), jnp.bfloat16) for n in (16, 8, 8, 16)]
    program = jax.make_jaxpr(partial(gpu_measure.forward_backward, product))(*inputs)
    largest = max(np.prod(shape, dtype=int) for shape in arrays_within(program.jaxpr))
    assert (largest >= length**2) == (name == 'reference'), largest


def test_packed_rows_of_text_follow_the_attention_rule():
    segment = gpu_measure.segments(300)
    seen = masks.visible(*[gpu_measure.text_integers(segment)] * 2)[0]
    same = segment[0][:, None] == segment[0]
    np.testing.assert_array_equal(seen, same & np.tri(300, dtype=bool))
    assert segment[0, 0] == 1 and segment.max() > 3
