"""The requested steps are traced, and no others."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from rf_jax.runtime import profiling
from rf_jax.runtime.errors import UserError


def test_a_trace_holds_the_requested_steps(tmp_path):
    double = jax.jit(lambda x: 2 * x)
    with profiling.Profile(tmp_path / 'profile', (2, 3)) as trace:
        for number in range(1, 6):
            with trace.step(number):
                double(jnp.ones(3)).block_until_ready()
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
    (file,) = (tmp_path / 'profile').rglob('perfetto_trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    steps = [e['args']['step_num'] for e in events if e.get('name') == 'train']
    assert sorted(map(int, steps)) == [2, 3]


def test_a_run_that_ends_during_a_trace_still_writes_it(tmp_path):
    with profiling.Profile(tmp_path / 'profile', (1, 10)) as trace, trace.step(1):
        jnp.ones(3).block_until_ready()
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))


def test_a_trace_waits_for_the_outputs_of_its_last_step(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(profiling.jax, 'block_until_ready', waited.append)
    with profiling.Profile(tmp_path / 'profile', (1, 1)) as trace:
        for number in (1, 2):
            with trace.step(number):
                pass
            trace.wait_for(number)
    assert waited == [1]


def test_nothing_is_traced_by_default(tmp_path):
    with profiling.Profile(tmp_path / 'profile', profiling.parse('')) as trace, trace.step(1):
        pass
    assert not (tmp_path / 'profile').exists()


@pytest.mark.parametrize('text', ['5', '5:', ':5', '6:5', '0:5', 'a:b', '-1:5'])
def test_invalid_steps(text):
    with pytest.raises(UserError, match='expected first:last'):
        profiling.parse(text)
    assert profiling.parse('10:15') == (10, 15)


def test_a_bucket_that_fails_does_not_end_the_run(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(profiling.tempfile, 'mkdtemp', lambda **_: str(tmp_path / 'trace'))
    monkeypatch.setattr(profiling.storage, 'is_local', lambda _: False)

    def fail(*_):
        raise UserError('spoiled')

    monkeypatch.setattr(profiling.storage, 'copy', fail)
    with profiling.Profile('gs://bucket/profile', (1, 1)) as trace, trace.step(1):
        pass
    assert 'The profile stays in' in caplog.text and list((tmp_path / 'trace').rglob('*.xplane.pb'))
