"""A run initialised from others reads only what it uses, into shards, and logs the sources."""

import logging
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore
from shrink import tiny_run

from rf_jax.runtime import checkpoint
from rf_jax.runtime.errors import UserError
from rf_jax.study import runner
from rf_jax.training import optimizer, train_loop, weight_sources

pytestmark = pytest.mark.slow

NEW = (r'^representation_', r'^codebook$')
WIDE = {'model.backbone.feedforward': 4096}  # arrays that are larger than their metadata
AS = ((r'^backbone/layers/(representation|pixels)', 'backbone/layers/understanding'),)


def save(run, state, step):
    checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=9)
    checkpoints.save(step, state)
    checkpoints.close()
    train_loop.write_start(run)


def numbers(run):
    """A state with the shapes and shardings of a run and distinct values; compiles nothing."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(random.uniform(size=x.shape).astype(x.dtype), x.sharding),
        run.abstract,
    )


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """(folder, state) of a run at step 3."""
    run = tiny_run(tmp_path_factory.mktemp('runs') / 'alignment', WIDE | {'steps': 3}, devices=8)
    state = numbers(run)
    save(run, state, 3)
    return run.workdir, jax.device_get(state)


def started(workdir, sources, devices=8, **changes):
    changes = WIDE | {'initialise_from': ','.join(map(str, sources)), **changes}
    run = tiny_run(workdir, changes, devices)
    checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints', every=1, keep=1)
    _, state = train_loop.start_state(run, checkpoints)
    checkpoints.close()
    return run, state


def damage(folder, name, step=3):
    """Overwrites the stored arrays whose name starts with `name`, but not their metadata."""
    where = {'driver': 'ocdbt', 'base': f'file://{folder}/checkpoints/{step}/default/'}
    store = tensorstore.KvStore.open(where).result()
    data = [key for key in store.list().result() if key.startswith(name.encode())]
    data = [key for key in data if not key.endswith(b'/.zarray')]
    assert data
    for key in data:
        store[key] = b'damaged'


def same(found, wanted):
    found, wanted = jax.tree.leaves(jax.device_get(found)), jax.tree.leaves(wanted)
    return all(a.tobytes() == b.tobytes() for a, b in zip(found, wanted, strict=True))


@pytest.fixture
def without_optimizer(source, tmp_path):
    folder = tmp_path / 'alignment'
    shutil.copytree(source[0], folder)
    damage(folder, 'opt_state.')
    with pytest.raises(UserError, match='can be read'):
        checkpoint.restore_numpy(folder / 'checkpoints')
    return folder


def test_a_run_starts_from_one_whose_optimizer_state_cannot_be_read(
    without_optimizer, source, tmp_path
):
    _, state = started(tmp_path / 'joint', [without_optimizer])
    for name in ('params', 'ema', 'codebook'):
        assert same(getattr(state, name), getattr(source[1], name)), name
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(state.opt_state))


def test_the_step_of_a_stage_is_learned_without_its_arrays(without_optimizer, tmp_path):
    class Job:
        folder, last, stages = without_optimizer, 3, ()

    class Arm:
        folder, stages = tmp_path / 'arm', [without_optimizer]

    runner.check_stages(Arm, [Job])
    Job.last = 4
    with pytest.raises(UserError, match='is step 3, not 4'):
        runner.check_stages(Arm, [Job])


@pytest.fixture(scope='module')
def reads():
    """[(path, restore arguments)] of every array that Orbax restores."""
    asked, restore = [], ocp.PyTreeCheckpointHandler.restore

    def note(self, *given, args, **named):
        asked.extend(zip(optimizer.paths(args.item), jax.tree.leaves(args.restore_args)))
        return restore(self, *given, args=args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ocp.PyTreeCheckpointHandler, 'restore', note)
        yield asked


def bytes_read():
    """Bytes read from files, as TensorStore counts them."""
    name = '/tensorstore/kvstore/file/bytes_read'
    found = tensorstore.experimental_collect_matching_metrics(name)
    return sum(value['value'] for metric in found for value in metric['values'])


class Lines(logging.Handler):
    """Logged messages."""

    def __init__(self):
        super().__init__()
        self.text = ''

    def emit(self, record):
        self.text += record.getMessage() + '\n'


@pytest.fixture(scope='module')
def joint(source, reads, tmp_path_factory):
    """(run, its state at the start, arrays read, what was logged, bytes read)"""
    changes = {'initialise_new': NEW, 'initialise_as': AS, 'optimizer.freeze': (r'^encoder/',)}
    lines, logger = Lines(), logging.getLogger('absl')
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel('INFO')
    reads.clear()
    amount = bytes_read()
    run, state = started(tmp_path_factory.mktemp('joint'), [source[0]], **changes)
    logger.setLevel(before)
    logger.removeHandler(lines)
    return run, state, list(reads), lines.text, bytes_read() - amount


def test_every_array_is_read_once_and_straight_into_its_shards(source, joint):
    run, state, reads, _, amount = joint
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f'state {whole:,} bytes, read {amount:,}')
    assert amount < 0.5 * whole
    paths = [path for path, _ in reads]
    assert len(set(paths)) == len(paths)
    assert not [p for p in paths if not p.startswith(('params/', 'ema/'))]
    assert not [p for p in paths if p.startswith('params/encoder/') or 'representation' in p]
    wanted = dict(zip(optimizer.paths(run.abstract), jax.tree.leaves(run.abstract)))
    for path, how in reads:
        assert how.restore_type is not np.ndarray and how.sharding == wanted[path].sharding, path
    for path, leaf in zip(optimizer.paths(state), jax.tree.leaves(state)):
        assert leaf.sharding == wanted[path].sharding, path
        shard = wanted[path].sharding.shard_shape(leaf.shape)
        assert all(part.data.shape == shard for part in leaf.addressable_shards), path
    large = wanted['params/backbone/layers/pixels/ffn/up/kernel']
    assert np.prod(large.sharding.shard_shape(large.shape)) * 8 == np.prod(large.shape)

    before = source[1]
    for tree, old in ((state.params, before.params), (state.ema, before.ema)):
        layers, old_layers = tree['backbone']['layers'], old['backbone']['layers']
        for group in ('pixels', 'representation', 'understanding'):
            assert same(layers[group], old_layers['understanding']), group
        assert same(tree['encoder'], before.ema['encoder']), 'frozen: starts as its average'
        assert same(tree['text_head'], old['text_head'])
    buffers = [x.addressable_data(0).unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers), 'the state is donated'
    fresh = run.initialise()  # new arrays are as in a newly initialised run
    for name in ('representation_head', 'representation_embed'):
        assert same(state.params[name], jax.device_get(fresh.params[name]))
        assert same(state.ema[name], jax.device_get(fresh.ema[name]))
    assert same(state.codebook, jax.device_get(fresh.codebook))


def test_where_each_group_of_parameters_comes_from_is_logged(source, joint):
    run, _, _, text, _ = joint
    lines = [line.split(maxsplit=2) for line in text.splitlines()]
    lines = {line[0]: line[1:] for line in lines if len(line) == 3}
    size = sum(x.size for x in jax.tree.leaves(run.abstract.params['encoder']))
    assert lines['encoder'] == [f'{size:,}', f'{source[0]} at step 3, its average']
    assert lines['text_head'][1] == f'{source[0]} at step 3'
    pixels = lines['backbone/layers/pixels'][1]
    assert pixels == f'{source[0]} at step 3, its backbone/layers/understanding'
    assert lines['representation_head'][1] == lines['codebook'][1] == 'new'
    assert 'ema' in lines


def test_each_array_comes_from_the_first_run_that_has_it(source, tmp_path, caplog):
    folder, before = source
    other = tiny_run(tmp_path / 'vae', {'model.space': 'vae', 'losses.reconstruction': 1.0,
                                        'losses.flow': 0.0}, devices=8)  # fmt: skip
    save(other, numbers(other), 2)
    changes = {'model.space': 'vae', 'optimizer.freeze': (r'^autoencoder/',),
               'initialise_new': (r'^patch_',)}  # fmt: skip
    with caplog.at_level('INFO', logger='absl'):
        _, state = started(tmp_path / 'arm', [folder, other.workdir], **changes)
    assert same(state.params['text_head'], before.params['text_head'])
    assert f'{other.workdir} at step 2' in caplog.text
    with pytest.raises(UserError, match=r'initialise_from=.*nothing of .*vae is used'):
        started(tmp_path / 'none', [folder, other.workdir])


def test_a_damaged_array_of_the_newest_checkpoint_is_an_error(source, tmp_path, reads):
    folder = tmp_path / 'alignment'
    shutil.copytree(source[0], folder)
    shutil.copytree(folder / 'checkpoints' / '3', folder / 'checkpoints' / '2')
    damage(folder, 'params.text_head.')
    with pytest.raises(UserError, match=r'checkpoints/3 is damaged \(.*the one before it'):
        started(tmp_path / 'joint', [folder])
    # The same for a run's own checkpoint: the damage is located by reading shards.
    run = tiny_run(folder, WIDE | {'steps': 3}, devices=8)
    reads.clear()
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', every=1, keep=9)
    assert checkpoints.restore(run.abstract)[0] == 2
    checkpoints.close()
    assert reads and all(how.restore_type is not np.ndarray for _, how in reads)


def test_another_step_than_the_newest(source, tmp_path, monkeypatch):
    """Unless a folder has that name."""
    folder = tmp_path / 'alignment'
    shutil.copytree(source[0], folder)
    run = tiny_run(folder, WIDE | {'steps': 3}, devices=8)
    later = jax.tree.map(lambda x: x + 1, numbers(run))
    save(run, later, 5)
    monkeypatch.chdir(tmp_path)
    for entry, right in (
        ('alignment', jax.device_get(later)),
        ('alignment@5', jax.device_get(later)),
        ('alignment@3', source[1]),
    ):
        found, state = started(tmp_path / f'from {entry}', [entry])
        assert same(state.params, right.params), entry
        again = weight_sources.with_absolute_paths(found.config)
        assert again == f'{tmp_path}/{entry}' and weight_sources.listed(found.config)
    with pytest.raises(UserError, match=r'alignment has no checkpoint of step 4; it has \[3, 5\]'):
        started(tmp_path / 'none', ['alignment@4'])
    folder.rename(tmp_path / 'alignment@4')
    _, state = started(tmp_path / 'renamed', ['alignment@4'])
    assert same(state.params, jax.device_get(later).params)


MISTYPED = {
    'letter': ('alignmnt', r'/.*alignmnt does not exist; did you mean alignment\?'),
    'unknown': ('xyz', r'/.*xyz does not exist; runs with checkpoints in /.*: alignment$'),
    'no checkpoints': ('empty', r'empty has no checkpoint .*empty/checkpoints'),
    'folder of runs': ('.', r'has no checkpoint .*; runs with checkpoints in .*: alignment$'),
    'file': ('note.txt', r'note\.txt is a file; give the folder of a run'),
    'checkpoints': ('alignment/checkpoints', r'is inside a run; .* of the run, alignment$'),
    'one checkpoint': ('alignment/checkpoints/3', r'is inside a run; .* alignment$'),
    'a file of it': ('alignment/config.json', r'is inside a run; .* alignment$'),
    'second': ('alignment,alignmnt', r'/.*alignmnt does not exist; did you mean'),
}


@pytest.fixture
def runs(source, tmp_path, monkeypatch):
    shutil.copytree(source[0], tmp_path / 'alignment')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'note.txt').write_text('')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('name', MISTYPED)
def test_a_mistyped_initialise_from_says_what_was_expected(runs, name):
    given, message = MISTYPED[name]
    with pytest.raises(UserError, match=message) as error:
        tiny_run(runs / 'out' / 'joint', {'initialise_from': given})
    assert str(error.value).startswith(f'initialise_from={given!r}: ')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('given', ['~/alignment', 'alignment,', ' alignment , ', './alignment/'])
def test_home_and_a_trailing_comma_are_accepted(runs, given):
    run = tiny_run(runs / 'out' / 'joint', {'initialise_from': given})
    assert run.tokenizer.model_bytes == (runs / 'alignment/tokenizer.model').read_bytes()


def test_a_checkpoint_of_another_kind_is_an_error(runs):
    manager = checkpoint.Checkpoints(runs / 'other' / 'checkpoints', every=1, keep=1)
    manager.save(1, {'weights': np.zeros(3)})
    manager.close()
    shutil.copy(runs / 'alignment/tokenizer.model', runs / 'other')
    with pytest.raises(UserError, match=r'other/checkpoints has weights, not params, ema'):
        started(runs / 'joint', ['other'])
    (runs / 'other' / 'tokenizer.model').unlink()
    with pytest.raises(UserError, match=r"initialise_from='other': other has no tokenizer\.mo"):
        tiny_run(runs / 'joint', {'initialise_from': 'other'})


def test_a_run_with_checkpoints_no_longer_needs_its_sources(runs):
    assert tiny_run(runs / 'alignment', {'initialise_from': 'gone', 'steps': 4}).tokenizer.size
