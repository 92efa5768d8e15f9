"""The compile check: its programs, its figures, and its errors."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from shrink import shrink

from configs import base
from rf_jax.models import flops
from rf_jax.planning import ahead_of_time, compile_report, inference, roofline, topology
from rf_jax.runtime import hardware
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import AXES, make_mesh
from rf_jax.training import train_loop
from rf_jax.training.step_metrics import StepMetrics

pytestmark = pytest.mark.slow

VOCABULARY = 64


def tiny(**changes):
    config = shrink(base.get_config())
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def checked():
    config = tiny(**{'mesh.tensor': 2, 'mesh.fsdp': 4})
    mesh = make_mesh(config.mesh, topology.devices('cpu:8'))
    names = ('initialise', 'train_step', 'sample')
    found = dict(zip(names, compile_report.compile_programs(config, VOCABULARY, mesh, names)))
    return config, found


def test_every_program_compiles_and_reports_its_cost(checked):
    _, found = checked
    for name, program in found.items():
        assert program.fits and 'memory per chip' in program.text
        assert 's of CPU time' in program.text
        assert program.values['peak'] > 0 and (program.values['flops'] > 0) == (
            name != 'initialise'
        )
    moved = {row['kind'] for row in found['train_step'].values['collectives']}
    assert moved & {'all-reduce', 'reduce-scatter'} and 'all-gather' in moved


def test_the_train_step_lists_the_parts_of_its_memory_and_the_fields_that_reduce_them(checked):
    config, found = checked
    values = found['train_step'].values
    named = {part['what']: part for part in values['parts']}
    assert named['optimizer state']['field'] == 'offload'
    assert named['parameters and their casts']['bytes'] > 0
    assert f'[mesh.fsdp={config.mesh.fsdp}]' in found['train_step'].text
    # Estimated from the text of the program: 5 to 7 % above XLA's own.
    assert sum(part['bytes'] for part in values['parts']) <= 1.1 * values['peak']


def test_sampling_compiles_on_a_mesh_that_shards_rows_in_training():
    """Devices along context sample rows of their own, more than a training batch has."""
    config = tiny(**{'data.batch_size': 4, 'mesh.context': 2, 'data.capacity.vision': 8})
    config.data.capacity.update(representation=6, vision_images=2, pixel_images=2)
    mesh = make_mesh(config.mesh, topology.devices('cpu:8'))
    assert inference.sample(config, VOCABULARY, mesh).peak > 0


def test_flops_of_the_program_agree_with_the_model(checked):
    """Attention computes every pair here; the rest of the model is counted the same way."""
    config, found = checked
    values = found['train_step'].values
    whole = flops.train_step(config, VOCABULARY) / 8
    # With fewer kv heads than tensor devices, each still computes only its own query heads.
    assert 0.9 < values['flops'] / whole < 1.0
    assert values['model_flops'] < whole, 'masked pairs are not counted for the model'
    batches = SimpleNamespace(counts={}, rows=range(config.data.batch_size))
    logged = StepMetrics(config, VOCABULARY, batches, None, 0, None, ()).flops
    assert logged == pytest.approx(8 * values['model_flops']), (
        'a run computes its MFU from the same FLOPs'
    )


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'data.capacity.text': 4}, r'data\.capacity\.text=4 cannot hold one example'),
        ({'data.sizes': ((50, 1.0),)}, r'data\.sizes has 50 px'),
        ({'data.tasks.text_only': -1.0}, r'data\.tasks\.text_only=-1\.0'),
        ({'data.batch_size': 9}, r'data\.batch_size is 9'),
        ({'mesh.tensor': 3}, r'mesh\.tensor=3'),
    ],
)
def test_configs_that_training_refuses_are_not_compiled(changes, words, tmp_path, monkeypatch):
    config = tiny(**changes)
    with pytest.raises(UserError, match=words):
        train_loop.build(config, tmp_path)
    monkeypatch.setattr(ahead_of_time, 'compile_program', lambda *_: pytest.fail('it was compiled'))
    with pytest.raises(UserError, match=words):
        next(compile_report.meshes(config, topology.devices('cpu:8'), ['initialise'], None))


class Torus:
    """A fake slice of v5p chips."""

    def __init__(self, sizes, slices=1):
        places = itertools.product(range(slices), *map(range, sizes))
        self.devices = np.array(
            [
                SimpleNamespace(coords=place[::-1], slice_index=s, device_kind='TPU v5')
                for s, *place in places
            ]
        )

    def mesh(self, **sizes):
        shape = [sizes.get(axis, 1) for axis in AXES]
        return SimpleNamespace(devices=self.devices.reshape(shape), axis_names=AXES)


CHIP = hardware.CHIPS['TPU v5']


@pytest.mark.parametrize(
    ('sizes', 'group', 'axes', 'ici'),
    [
        ((4, 4, 4), range(4), ('fsdp',), 1 / CHIP.links),  # a ring
        ((4, 4, 4), range(16), ('fsdp',), 1 / (2 * CHIP.links)),  # two axes of the torus
        ((4, 4, 4), range(2), ('fsdp',), 2 / CHIP.links),  # half of an axis: not a ring
    ],
)
def test_a_collective_uses_the_links_of_the_axes_it_spans(sizes, group, axes, ici):
    mesh = Torus(sizes).mesh(fsdp=64)
    (row,) = roofline.collectives({('all-gather', (tuple(group),)): 1.0}, mesh, CHIP)
    assert row.axes == axes and row.network == 0
    np.testing.assert_allclose(row.links, ici)


def test_between_slices_a_chip_sends_its_share_over_dcn():
    mesh = Torus((2, 2, 1), slices=2).mesh(data=2, fsdp=4)
    (row,) = roofline.collectives({('all-reduce', (tuple(range(8)),)): 8.0}, mesh, CHIP)
    assert row.axes == ('data', 'fsdp')
    np.testing.assert_allclose(row.network, 8.0 / 4 / CHIP.network)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('v5x:2x2', 'not known. Known: v5e: .*v5p: 2x2x1'),
        ('v5p', 'not known'),
        ('v5p:two', 'not known'),
        ('cpu:99', 'there are 8 CPU devices'),
        ('cpu:0', "--topology='cpu:0' is not known"),
    ],
)
def test_an_unknown_topology_lists_the_known_ones(name, words):
    with pytest.raises(UserError, match=words):
        topology.devices(name)


def test_a_program_that_does_not_fit_lists_its_largest_parts_and_advice(monkeypatch):
    config = tiny()
    mesh = make_mesh(config.mesh, topology.devices('cpu:8'))

    def refuse(*_):
        raise ahead_of_time.DoesNotFit('train step', 120.5e9, 102.8e9)

    monkeypatch.setitem(compile_report.PROGRAMS, 'train_step', refuse)
    (found,) = compile_report.compile_programs(config, VOCABULARY, mesh, ['train_step'])
    assert not found.fits and '120.5 GB of memory, but a chip has 102.8 GB' in found.text
    assert 'parameters' in found.text and 'model.backbone.remat' in found.text
    with pytest.raises(UserError, match="--only='trainstep' is not known; did you mean"):
        list(compile_report.compile_programs(config, VOCABULARY, mesh, ['trainstep']))


def cost(seconds, peak):
    return ahead_of_time.Cost(
        name='train step', compile_seconds=1.0, compile_processor_seconds=2.0, peak=peak,
        arguments=1.0, outputs=0.0, temporaries=1.0, host=0.0, parts=(), flops=2.0,
        model_flops=1.0, memory_traffic=1.0, collectives=(),
        times=roofline.Times(seconds, 0, 0, 0), mfu=0.5, loops_of_unknown_length=0,
    )  # fmt: skip


def test_a_sweep_tries_meshes_and_policies(monkeypatch):
    def compile_(config, vocabulary, mesh):
        assert vocabulary == VOCABULARY and mesh.size == 8
        if config.mesh.expert == 8:
            raise ahead_of_time.DoesNotFit('train step', 120e9, 95e9)
        if config.mesh.context == 2:
            raise UserError('data.capacity.text=33 is not a multiple of mesh.context=2')
        return cost(1.0 / mesh.shape['expert'], 1e9)

    monkeypatch.setattr(ahead_of_time, 'train_step', compile_)
    config = tiny(**{'model.backbone.ffn': 'moe'})
    tried = list(compile_report.sweep(config, VOCABULARY, topology.devices('cpu:8')))
    assert {fields['mesh.expert'] for fields, *_ in tried} == {1, 4, 8}
    assert {fields['mesh.context'] for fields, *_ in tried} == {1, 2}
    assert {fit for fields, _, fit in tried if fields['mesh.expert'] == 8} == {False}
    cut = [each for each in tried if each[0]['mesh.context'] == 2]
    assert {(cost, fit) for _, cost, fit in cut} == {
        ('no: data.capacity.text=33 is not a multiple of mesh.context=2', False)
    }
    assert compile_report.tried_as_json(*cut[0])['reason'].startswith('data.capacity.text=33')
    _, best, *others = compile_report.sweep_table(tried).splitlines()
    assert 'expert=4' in best and best.split()[0] == 'yes'
    assert sum('no: data.capacity.text=33' in line for line in others) == len(cut)


def test_a_sweep_continues_after_an_impossible_mesh(monkeypatch):
    monkeypatch.setattr(ahead_of_time, 'train_step', lambda *_: cost(1.0, 1e9))
    config = tiny(**{'model.backbone.ffn': 'moe', 'mesh.data': 2, 'mesh.fsdp': 4})
    tried = list(compile_report.sweep(config, VOCABULARY, topology.devices('cpu:8')))
    assert {fields['mesh.expert'] for fields, _, fit in tried if fit} == {1}
    reasons = [what for fields, what, _ in tried if fields['mesh.expert'] == 4]
    assert reasons and all(reason.startswith('no: ') for reason in reasons)


def test_a_sweep_without_variants_is_an_error():
    config = tiny(**{'data.batch_size': 9})
    with pytest.raises(UserError, match=r'no mesh for 8 devices and data\.batch_size=9'):
        list(compile_report.sweep(config, VOCABULARY, topology.devices('cpu:8')))


def test_a_row_is_added_to_the_table_and_not_to_the_text_after_it(tmp_path):
    file = tmp_path / 'memory.md'
    file.write_text('# Memory\n', encoding='utf-8')
    compile_report.add_line(file, '| a |\n')
    with file.open('a', encoding='utf-8') as opened:
        opened.write('\n## More\n\n| other | table |\n')
    compile_report.add_line(file, '| b |\n')
    before, after = file.read_text(encoding='utf-8').split(compile_report.HEADER)
    assert before == '# Memory\n\n'
    assert after == '| a |\n| b |\n\n## More\n\n| other | table |\n'


def test_a_sweep_ranks_what_fits_by_time():
    tried = [
        ({'mesh.expert': 8}, '120.0', False),
        ({'mesh.expert': 4}, cost(2.0, 1e9), True),
        ({'mesh.tensor': 2}, cost(1.0, 1e9), True),
        ({'mesh.context': 2}, cost(0.5, 1e12), False),
    ]
    lines = compile_report.sweep_table(tried).splitlines()
    order = [line.split()[-1] for line in lines[1:]]
    assert order == ['tensor=2', 'expert=4', 'context=2', 'expert=8']
