"""The sharding table must match every parameter, and mistakes in it are errors at startup."""

import math

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import paper
from rf_jax.runtime import sharding
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import AXES, make_mesh
from rf_jax.runtime.sharding import overview, path_name, shardings

RULES = (
    ('embedding$', ('tensor', 'fsdp')),
    ('(query|up)/kernel$', ('fsdp', 'tensor')),
    ('norm/scale$', (None,)),
    ('wide/kernel$', (('fsdp', 'tensor'), None)),
)


@pytest.fixture(scope='module')
def mesh():
    return make_mesh({'data': 1, 'fsdp': 4, 'expert': 1, 'tensor': 2, 'context': 1})


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def params():
    return {
        'embedding': shape(64, 32),
        'layers': {
            'query': {'kernel': shape(3, 32, 16)},
            'up': {'kernel': shape(3, 30, 6)},
            'norm': {'scale': shape(3, 32)},
        },
        'wide': {'kernel': shape(128, 7)},
        'gain': shape(1, 1),
    }


def specs(tree, mesh, rules=RULES):
    return jax.tree.map(lambda sharding: sharding.spec, shardings(tree, mesh, rules))


def test_golden_layout(mesh):
    assert specs(params(), mesh) == {
        'embedding': P('tensor', 'fsdp'),
        'layers': {
            'query': {'kernel': P(None, 'fsdp', 'tensor')},  # the scanned layer axis is replicated
            'up': {'kernel': P(None, None, 'tensor')},  # 4 does not divide 30
            'norm': {'scale': P(None, None)},
        },
        'wide': {'kernel': P(('fsdp', 'tensor'), None)},
        'gain': P(),  # a scalar needs no row
    }


def test_axes_of_an_entry_that_divide_are_kept(mesh):
    rules = (('a$', (('fsdp', 'tensor'),)), ('b$', (('fsdp', 'tensor'),)))
    assert specs({'a': shape(12), 'b': shape(6)}, mesh, rules) == {'a': P('fsdp'), 'b': P('tensor')}


def test_first_row_wins(mesh):
    rules = (('a$', ('tensor',)), ('.', ('fsdp',)))
    assert specs({'a': shape(8), 'b': shape(8)}, mesh, rules) == {'a': P('tensor'), 'b': P('fsdp')}


def test_rows_read_back_from_json(mesh):
    rules = [['a$', [['fsdp', 'tensor'], None]]]
    assert specs({'a': shape(8, 3)}, mesh, rules) == {'a': P(('fsdp', 'tensor'), None)}


def test_optimizer_state_follows_its_parameters(mesh):
    tree = params()
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3))
    state = jax.eval_shape(optimizer.init, tree)
    found = specs(state, mesh)
    assert found[1][0].mu == specs(tree, mesh) == found[1][0].nu
    assert found[1][0].count == P()
    names = [path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    assert '1/0/mu/layers/query/kernel' in names


def test_every_unmatched_parameter_is_named(mesh):
    tree = params() | {f'new{i}': {'bias': shape(32)} for i in range(12)}
    with pytest.raises(UserError) as error:
        shardings(tree, mesh, RULES)
    for i in range(12):
        assert f'new{i}/bias [32]' in str(error.value)
    assert 'query' not in str(error.value)


@pytest.mark.parametrize(
    'row, words',
    [
        (('norm/scale$', (None, None, 'fsdp')), r'names 3 dimensions, but layers/norm/scale'),
        (('.', ('model',)), r"'model'; the mesh has data, fsdp"),
        (('.', ('fsdp', 'fsdp')), r"'fsdp' twice"),
        (('.', (('tensor', 'fsdp'), 'tensor')), r"'tensor' twice"),
        (('(', ('fsdp',)), r"'\(' is not a regular expression"),
        (('.', 'fsdp'), r"write \('fsdp',\)"),
        (('.',), r'not a row'),
    ],
)
def test_invalid_rows(mesh, row, words):
    with pytest.raises(UserError, match='^sharding: .*' + words):
        shardings(params(), mesh, (row, *RULES))


def test_too_many_replicated_bytes(mesh):
    tree = {'big': shape(64, 1024), 'small': shape(97), 'odd': shape(33, 101)}
    rules = (('big', (None, 'fsdp')), ('.', ('fsdp',)))
    with pytest.raises(UserError, match=r'odd \(13\.3 kB\), small \(388 B\)\.') as error:
        shardings(tree, mesh, rules)
    assert 'big' not in str(error.value)
    del tree['odd']  # the 97 values alone are less than 2 %
    shardings(tree, mesh, rules)


def test_anything_may_be_replicated_without_fsdp():
    mesh = make_mesh({'data': -1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1})
    assert specs({'a': shape(64, 64)}, mesh, (('.', (None,)),)) == {'a': P(None, None)}


def test_overview(mesh):
    tree = {'params': params()}
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh, RULES),
    )
    rows = {line.split()[0]: line for line in overview(placed).splitlines() if line}
    line = rows['params/layers/query/kernel']
    assert '3x32x16' in line and 'float32' in line and '1,536' in line and '6.14 kB' in line
    assert "(None, 'fsdp', 'tensor')" in line
    assert '2,172' in rows['params/layers']
    assert '5,117' in rows['total'] and '20.5 kB' in rows['total']
    assert 'fsdp' not in overview(tree)


def test_every_chip_of_a_pod_holds_a_different_shard_of_the_papers_experts():
    """128 experts over 512 chips without replicas."""
    config = paper.get_config('joint')
    pod = AbstractMesh((4, 128, 1, 1, 1), AXES)
    model = config.model.backbone
    into = model.layers, model.moe.num_experts, model.width, model.moe.feedforward
    for name, shape in {'gate': into, 'up': into, 'down': (*into[:2], *into[:1:-1])}.items():
        for tree in ('params', 'ema', 'opt_state/2/mu', 'opt_state/2/nu'):
            path = f'{tree}/backbone/layers/pixels/{name}'
            spec = sharding.spec(path, shape, pod, config.sharding)
            own = NamedSharding(pod, spec).shard_shape(shape)
            assert math.prod(own) * 512 == math.prod(shape), f'{path}: {own} of {shape}'
            assert own[-2] % 16 == 0 and own[-1] % 128 == 0, 'no padding to tiles of memory'
