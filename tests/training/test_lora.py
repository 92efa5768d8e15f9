"""Adapters: only they are trained and saved, and merged they are the model that was trained."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import tiny_run

from configs import base
from rf_jax.evaluation import run_report
from rf_jax.evaluation.inspection import Inspector
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime import checkpoint
from rf_jax.runtime.checkpoint_files import flatten
from rf_jax.runtime.errors import UserError
from rf_jax.training import checks, lora, losses, optimizer, step, train_loop

slow = pytest.mark.slow

MOE = {'model.backbone.ffn': 'moe', 'data.batch_size': 8}
LORA = {'lora.rank': 4, 'lora.alpha': 8.0, 'optimizer.warmup_steps': 1, 'steps': 6}


def host(tree):
    return {path: np.asarray(leaf) for path, leaf in flatten(jax.device_get(tree)).items()}


def assert_equal(found, right):
    assert found.keys() == right.keys()
    assert [path for path in right if found[path].tobytes() != right[path].tobytes()] == []


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """The folder of a trained run with experts."""
    run = tiny_run(tmp_path_factory.mktemp('runs') / 'start', MOE | {'steps': 2}, devices=1)
    train_loop.train(run)
    return run.workdir


def adapted(workdir, start, devices=1, **changes):
    return tiny_run(workdir, MOE | LORA | {'initialise_from': str(start)} | changes, devices)


@pytest.fixture(scope='module')
def trained(start, tmp_path_factory):
    """(run, its state after six steps)"""
    run = adapted(tmp_path_factory.mktemp('adapted') / 'run', start)
    return run, train_loop.train(run)


class TestFunctions:
    """Of arrays, without a run."""

    @pytest.mark.parametrize('leading', [(), (3,), (3, 4)])
    def test_merged_equals_the_kernel_and_its_adapters_applied_one_after_the_other(self, leading):
        random = np.random.default_rng(0)
        w, a, b = (random.normal(size=(*leading, *shape)).astype(np.float32)
                   for shape in ((32, 48), (32, 4), (4, 48)))  # fmt: skip
        x = random.normal(size=(*leading, 5, 32)).astype(np.float32)
        whole = lora.merged({'up': {'kernel': w}}, {'up': {'kernel': {'a': a, 'b': b}}}, 2.0)
        merged = x @ np.asarray(whole['up']['kernel'])
        unmerged = x @ w + 2.0 * ((x @ a) @ b)
        np.testing.assert_allclose(merged, unmerged, rtol=0, atol=1e-5 * np.abs(unmerged).max())
        assert np.abs(unmerged - x @ w).max() > 1

    def test_adapters_begin_at_the_base_with_factors_and_a_scale_of_their_own(self):
        config = base.get_config()
        config.lora.update(rank=4, alpha=8.0, targets=('kernel$',), full=())
        kernels = {name: {'kernel': jnp.ones((3, 16, 8))} for name in ('query', 'key')}
        trained, frozen = lora.split(config, {'backbone': kernels})
        factors = [trained['backbone'][name]['kernel'] for name in kernels]
        assert not any(each['b'].any() for each in factors)
        drawn = np.stack([each['a'] for each in factors]).reshape(6, -1)  # of two kernels, 3 layers
        assert np.abs(np.corrcoef(drawn) - np.eye(6)).max() < 0.5 and drawn.std() > 0.1
        assert frozen['backbone'].keys() == kernels.keys() and lora.scale_of(config) == 2.0
        config.seed += 1
        other = lora.split(config, {'backbone': kernels})[0]['backbone']['query']['kernel']
        assert (other['a'] != factors[0]['a']).mean() > 0.9

    @pytest.mark.parametrize('field, value, message', [
        ('lora.targets', (r'querry',), r"lora\.targets has 'querry', which matches no kernel"),
        ('lora.targets', (r'scale$',), r"lora\.targets has 'scale\$', which matches no kernel"),
        ('lora.full', (r'^head',), r"lora\.full has '\^head', which matches no parameter"),
        ('lora.rank', 9, r'lora\.rank=9 is larger than a side of .*/kernel \[2, 16, 8\]: .* 8'),
    ])  # fmt: skip
    def test_what_does_not_fit_the_model_is_an_error(self, field, value, message):
        config = base.get_config()
        config.lora.rank = 4
        config.update_from_flattened_dict({field: value})
        params = {
            'backbone': {'query': {'kernel': jnp.ones((2, 16, 8)), 'scale': jnp.ones((2, 8))}}
        }
        with pytest.raises(UserError, match=message) as error:
            lora.split(config, params)
        assert '\n' not in str(error.value)

    @pytest.mark.parametrize('changes, message', [
        ({}, r'lora\.rank=4 needs initialise_from'),
        ({'lora.alpha': 0.0}, r'lora\.alpha=0\.0: expected a finite number above 0'),
        ({'lora.alpha': -1.0}, r'lora\.alpha=-1\.0'),
        ({'lora.rank': -1}, r'lora\.rank=-1'),
        ({'lora.targets': ('(',)}, r"lora\.targets has '\(', which is not a regular expression"),
        ({'lora.targets': (), 'initialise_from': 'x'}, r'targets and lora\.full are empty'),
    ])  # fmt: skip
    def test_a_config_that_fits_no_model_is_an_error(self, changes, message):
        config = base.get_config()
        config.lora.rank = 4
        config.update_from_flattened_dict(changes)
        with pytest.raises(UserError, match=message) as error:
            checks.check(config)
        assert '\n' not in str(error.value)


class TestTraining:
    pytestmark = slow

    def test_only_adapters_are_trained_and_have_averages_and_moments(self, trained, start):
        run, state = trained
        paths = optimizer.paths(state.params)
        assert paths and all(lora.is_adapter(path) for path in paths)
        assert optimizer.paths(state.ema) == paths
        moments = [p for p in optimizer.paths(state.opt_state) if '/mu/' in p or '/nu/' in p]
        assert len(moments) == 2 * len(paths)
        experts = state.params['backbone']['layers']['pixels']['gate']
        assert experts['a'].shape == (2, 4, 32, 4) and experts['b'].shape == (2, 4, 4, 16)
        before = host(run.initialise().params)
        moved = [p for p, x in host(state.params).items() if (x != before[p]).any()]
        assert moved == paths

    def test_the_base_is_the_average_of_the_run_before_bit_by_bit(self, trained, start):
        _, state = trained
        _, before = checkpoint.restore_numpy(start / 'checkpoints', only='ema')
        assert_equal(host(state.base), host(before['ema']))

    def test_at_the_start_the_model_is_the_base(self, start, tmp_path):
        run = adapted(tmp_path / 'run', start)
        checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=1)
        _, state = train_loop.start_state(run, checkpoints)
        checkpoints.close()
        _, before = checkpoint.restore_numpy(start / 'checkpoints', only='ema')
        assert_equal(host(state.whole().params), host(before['ema']))
        assert_equal(host(run.average(state)), host(before['ema']))

    def test_the_loss_of_a_step_is_that_of_the_merged_model(self, trained):
        run, state = trained
        batch = run.put(run.batches.batch(0))
        work = step.pretraining(run.config, run.model)
        loss = step.loss_function(run.config, run.model, work.terms)
        whole = state.whole()
        rows, *_ = work.prepare(whole, batch)
        rows = work.complete(whole, rows)
        value, _ = loss(whole.params, rows, losses.counts(work.terms, rows))
        copy = jax.tree.map(jnp.copy, state)
        _, metrics = run.train_step(copy, batch)
        np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)

    def test_a_checkpoint_holds_the_adapters_only(self, trained, start):
        run, state = trained

        def size(folder):
            return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())

        _, saved = checkpoint.restore_numpy(run.workdir / 'checkpoints')
        assert saved.keys() == {f for f in vars(state) if f not in ('base', 'scale')}
        assert optimizer.paths(saved['params']) == optimizer.paths(state.params)
        assert size(run.workdir / 'checkpoints' / '6') < size(start / 'checkpoints' / '2') / 2

    def test_a_resumed_run_equals_one_that_never_stopped(self, trained, start, tmp_path):
        _, whole = trained

        class Stopped(Exception):
            pass

        def stop(number, *_):
            if number == 3:
                raise Stopped

        changes = {'log.samples_every': 1}
        with pytest.raises(Stopped):
            train_loop.train(adapted(tmp_path / 'run', start, **changes), stop)
        state = train_loop.train(adapted(tmp_path / 'run', start, **changes))
        assert_equal(host(state), host(whole))

    def test_eight_devices_give_the_losses_of_one(self, start, tmp_path):
        found = {}
        changes = {'mesh.fsdp': 2, 'mesh.tensor': 2, 'mesh.expert': 2}
        for devices in (1, 8):
            run = adapted(tmp_path / str(devices), start, devices, **changes if devices > 1 else {})
            checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=1)
            _, state = train_loop.start_state(run, checkpoints)
            checkpoints.close()
            for path, leaf in flatten((state.params, state.base)).items():
                if devices > 1 and leaf.ndim > 2:
                    assert leaf.addressable_shards[0].data.nbytes < leaf.nbytes, path
            found[devices] = []
            for number in range(3):
                state, metrics = run.train_step(state, run.put(run.batches.batch(number)))
                found[devices].append(float(metrics['loss']))
        np.testing.assert_allclose(found[8], found[1], rtol=1e-4)

    def test_named_parameters_are_trained_in_full(self, start, tmp_path):
        run = adapted(tmp_path / 'run', start, **{'lora.full': (r'^connector/',), 'steps': 2})
        state = train_loop.train(run)
        paths = optimizer.paths(state.params)
        assert any(path.startswith('connector/') for path in paths)
        assert not [p for p in optimizer.paths(state.base) if p.startswith('connector/')]
        _, before = checkpoint.restore_numpy(start / 'checkpoints', only='ema')
        moved = host(state.params['connector'])
        assert all((moved[p] != x).any() for p, x in host(before['ema']['connector']).items())
        assert_equal(
            host(Sampler.load(run.workdir).params['connector']), host(state.ema['connector'])
        )

    def test_named_parameters_alone(self, start, tmp_path):
        """Without adapters: the rest has neither EMA nor moments, and the next run starts from
        both.
        """
        changes = {'lora.targets': (), 'lora.full': (r'^connector/',), 'steps': 2}
        run = adapted(tmp_path / 'aligned', start, **changes)
        state = train_loop.train(run)
        assert all(path.startswith('connector/') for path in optimizer.paths(state.params))
        _, saved = checkpoint.restore_numpy(run.workdir / 'checkpoints')
        size = sum(x.size for x in jax.tree.leaves(saved))
        assert (
            size < 6 * sum(x.size for x in jax.tree.leaves(state.params)) + saved['codebook'].size
        )
        both = {'initialise_from': f'{run.workdir},{start}', 'steps': 1, 'lora.rank': 0}
        later = tiny_run(tmp_path / 'joint', MOE | both, 1)
        checkpoints = checkpoint.Checkpoints(later.workdir / 'checkpoints', every=1, keep=1)
        _, begun = train_loop.start_state(later, checkpoints)
        checkpoints.close()
        assert_equal(host(begun.params['connector']), host(state.params['connector']))
        _, before = checkpoint.restore_numpy(start / 'checkpoints', only='params')
        assert_equal(host(begun.params['backbone']), host(before['params']['backbone']))


class TestReopening:
    pytestmark = slow

    def test_a_sampler_has_the_base_with_the_average_of_the_adapters(self, trained):
        run, state = trained
        sampler = Sampler.load(run.workdir)
        assert sampler.step == 6
        right = sampler.placement.by_layer(run.average(state))
        assert_equal(host(sampler.params), host(right))
        assert not (host(state.base)['backbone/layers/output/kernel'] ==
                    host(run.average(state))['backbone/layers/output/kernel']).all()  # fmt: skip
        assert Inspector.load(run.workdir).codebook.shape == (32, 32)

    def test_on_a_mesh_and_in_bfloat16_it_gives_nearly_the_same(self, trained):
        run, _ = trained
        alone = host(Sampler.load(run.workdir).params)
        sharded = Sampler.load(run.workdir, mesh={'expert': 2}, dtype='bfloat16')
        experts = sharded.params['backbone']['layers'][0]['pixels']['gate']
        assert experts.dtype == jnp.bfloat16 and not experts.sharding.is_fully_replicated
        for path, leaf in host(sharded.params).items():
            right = alone[path].astype(leaf.dtype)  # rounded once, after merging
            np.testing.assert_array_equal(leaf, right, err_msg=path)

    def test_it_is_evaluated_at_its_end_and_from_its_folder(self, trained):
        run, state = trained
        assert 'right image' in run_report.at_end(run, state)
        loaded = Inspector.load(run.workdir)
        source, _ = run_report.first_images(run)
        again = run_report.evaluate(loaded, source, run.workdir, 2, run.config.seed)
        assert 'right image' in again

    def test_trained_adapters_keep_their_scale(self, trained, start):
        run, _ = trained
        with pytest.raises(UserError, match=r'lora\.alpha=4, but .* were trained with 8: keep it'):
            adapted(run.workdir, start, **{'lora.alpha': 4.0})

    def test_a_base_that_moved_or_changed_is_an_error(self, trained, start, tmp_path):
        run, _ = trained
        there = tmp_path / 'there'
        shutil.copytree(start, there)
        shutil.copytree(run.workdir, tmp_path / 'run')
        config = json.loads((tmp_path / 'run' / 'config.json').read_text())
        assert config['initialise_from'] == str(start.absolute())
        config['initialise_from'] = str(there)
        (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
        assert Sampler.load(tmp_path / 'run').step == 6, 'a copy is as good'
        largest = max((there / 'checkpoints' / '2').rglob('*'), key=lambda p: p.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[-1] ^= 1
        largest.write_bytes(data)
        for reopen in (Sampler.load, lambda folder: train_loop.train(adapted(folder, there))):
            with pytest.raises(UserError, match=r'initialise_from=.*has changed') as error:
                reopen(tmp_path / 'run')
            assert '\n' not in str(error.value)
        shutil.rmtree(there)
        for reopen in (Sampler.load, lambda folder: train_loop.train(adapted(folder, there))):
            with pytest.raises(UserError, match=r'there/checkpoints/2, which is not there'):
                reopen(tmp_path / 'run')
        (tmp_path / 'run' / 'base.json').unlink()
        with pytest.raises(UserError, match=r'base\.json, .*cannot be read'):
            Sampler.load(tmp_path / 'run')

    def test_new_parameters_must_be_trained_in_full(self, start, tmp_path):
        run = adapted(tmp_path / 'run', start, initialise_new=(r'^connector/',))
        with pytest.raises(UserError, match=r'connector/.* is new, but frozen: .*lora\.full'):
            train_loop.train(run)

    def test_adapters_alone_are_nothing_to_start_from(self, trained, tmp_path):
        run, _ = trained
        other = tiny_run(tmp_path / 'run', MOE | {'initialise_from': str(run.workdir)})
        with pytest.raises(UserError, match=r'has adapters of other weights \(lora\.rank\)'):
            train_loop.train(other)
