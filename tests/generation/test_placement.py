"""Generating and captioning with parameters sharded as in training: no device has a full copy."""

import jax
import numpy as np
import pytest
from shrink import tiny_run
from tiny_sampler import drawn_in_a_chat

from rf_jax.evaluation import run_report
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.training import jitted, train_loop

pytestmark = pytest.mark.slow

CHANGES = {'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.context': 2}
IMAGES = [np.full((64, 64, 3), 40 * i, np.uint8) for i in range(3)]


def noisy(ema):
    """New parameters generate grey images; these do not."""

    def add(x):
        rng = np.random.default_rng(x.size)
        return x + 0.1 * rng.normal(size=x.shape).astype(x.dtype)

    return jax.tree.map(add, jax.device_get(ema))


def outputs(run, params):
    sampler = run_report.sampler_of(run)
    shardings = jax.tree.map(lambda a: a.sharding, run.abstract.ema)
    sampler.params = sampler.placement.params(jax.device_put(params, shardings))
    generated = sampler.generate(['red apple', 'blue sky', 'cat'], seed=3)
    generated.append(drawn_in_a_chat(sampler))
    images, codes = zip(*((each.image, each.tokens) for each in generated))
    encoded = Inspector(sampler, np.eye(32, dtype=np.float32)).codes(IMAGES)
    said = sampler.chat([{'role': 'user', 'content': 'a cat'}], images=False, max_tokens=4)
    return sampler, images, codes, (sampler.caption(IMAGES), said), encoded


def share(params):
    """Bytes on the first device, as a share of the tree."""
    leaves = jax.tree.leaves(params)
    held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
    return held / sum(x.nbytes for x in leaves)


@pytest.mark.nightly
def test_a_sharded_model_generates_and_captions_as_one_device(tmp_path):
    """Over parameters, heads, rows of images and devices that share a row in training."""
    alone = tiny_run(tmp_path / 'alone')
    params = noisy(alone.initialise().ema)
    _, images, codes, answers, encoded = outputs(alone, params)
    sampler, *found = outputs(tiny_run(tmp_path / 'run', CHANGES, devices=8), params)
    for one, other in zip(images, found[0], strict=True):
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    np.testing.assert_array_equal(codes, found[1])
    assert answers == found[2]
    np.testing.assert_array_equal(encoded, found[3])
    assert share(sampler.params) < 1 / 3


class Evaluated(Exception):
    """Of the parameters that it carries."""


@pytest.mark.parametrize('moment', ['at the end', 'while training'])
def test_no_device_holds_the_average_whole_to_evaluate_it(tmp_path, monkeypatch, moment):
    run = tiny_run(tmp_path, CHANGES, devices=8)
    state = run.initialise()

    def look(self, *_, **__):
        raise Evaluated(share(self.params))

    monkeypatch.setattr(Sampler, 'generate', look)
    with pytest.raises(Evaluated) as found:
        if moment == 'at the end':
            run_report.at_end(run, state)
        else:
            run_report.while_training(run)(1, state.ema, None)
    assert found.value.args[0] < 1 / 3


def refused(run, field, needed):
    """Whether this many bytes of a device are just enough."""
    with pytest.raises(
        UserError, match=f'^{field}=5: generation needs at least .* or set {field}=0$'
    ):
        run_report.check(run, needed - 1)
    run_report.check(run, needed)


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('field', ['evaluation.samples', 'log.samples_every'])
def test_generation_without_memory_is_refused_before_the_training(tmp_path, field, devices):
    """Too small by one byte for what is held already, for keys and values, and for the copy that
    one device makes of the layers.
    """
    changes = {'evaluation.samples': 0, 'log.samples_every': 0} | {field: 5}
    run = tiny_run(tmp_path, changes | (CHANGES if devices > 1 else {}), devices=devices)
    held = run.abstract.ema if field == 'evaluation.samples' else run.abstract
    copied = run.abstract.ema['backbone']['layers'] if devices == 1 else ()
    needed = run_report.cache_bytes(run) + sum(map(jitted.nbytes_per_device, (held, copied)))
    refused(run, field, needed)
    assert run_report.cache_bytes(run) > 0


def test_adapters_are_merged_into_a_copy(tmp_path):
    """Beside which their base stays: for the next step, or because the state has it."""
    start = tiny_run(tmp_path / 'start')
    checkpoints = checkpoint.Checkpoints(start.workdir / 'checkpoints', every=1, keep=1)
    checkpoints.save(0, start.initialise())
    checkpoints.close()
    train_loop.write_start(start)
    changes = {'lora.rank': 2, 'initialise_from': str(start.workdir), 'evaluation.samples': 0}
    run = tiny_run(tmp_path / 'run', changes | CHANGES | {'log.samples_every': 5}, devices=8)
    needed = run_report.cache_bytes(run) + jitted.nbytes_per_device(run.abstract_average)
    refused(run, 'log.samples_every', needed + jitted.nbytes_per_device(run.abstract))
    run.config.update_from_flattened_dict({'log.samples_every': 0, 'evaluation.samples': 5})
    held = run.abstract.base, run.abstract.ema
    refused(run, 'evaluation.samples', needed + jitted.nbytes_per_device(held))
