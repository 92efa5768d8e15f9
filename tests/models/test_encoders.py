"""model.encoder.kind: both families fit into the model, its sharding and its FLOP counts."""

import jax
import numpy as np
import pytest
from shrink import shrink

from configs import base
from rf_jax.models import encoders, flops, unified
from rf_jax.runtime import sharding
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import make_mesh
from rf_jax.training.state import example_row


def config(**changes):
    config = shrink(base.get_config())
    config.model.encoder.update(changes)
    return config


def shapes(config):
    """Shapes of the parameters of the encoder."""
    model = unified.build(config, 300)
    batch = example_row(model.channels)
    init = lambda: model.init(jax.random.key(0), batch, method=model.features)  # noqa: E731
    return jax.eval_shape(init)['params']['encoder']


def products(tree) -> int:
    """Multiplications of a token in the matrices of the layers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree['layers'])
    return sum(a.size for path, a in leaves if 'kernel' in jax.tree_util.keystr(path))


@pytest.mark.parametrize('kind', encoders.ENCODERS)
def test_flops_of_a_token_are_those_of_its_matrices(kind):
    c = config(kind=kind)
    family = encoders.of(c.model.encoder)
    assert family.token_flops(c.model.encoder) == 2 * products(shapes(c))


def test_images_have_tokens_of_their_own_in_dinov3_alone():
    """And `flops` counts the pairs of patches with them."""
    count = {kind: encoders.own_tokens(config(kind=kind)) for kind in encoders.ENCODERS}
    assert count == {'dinov3': 5, 'siglip2': 0}
    c = config(kind='siglip2')
    assert flops.all_pairs(c).pixels == c.data.capacity.pixels**2
    steps = [flops.train_step(config(kind=kind), 300) for kind in encoders.ENCODERS]
    assert steps[0] != steps[1]


def test_every_parameter_of_siglip2_is_sharded():
    c = config(kind='siglip2')
    mesh = make_mesh({'data': 1, 'fsdp': 4, 'expert': 1, 'tensor': 2, 'context': 1})
    placed = sharding.shardings({'encoder': shapes(c)}, mesh, c.sharding)
    table = placed['encoder']['position']['table'].spec
    assert tuple(table) == ('tensor', 'fsdp')


def test_a_run_of_before_has_a_dinov3_encoder():
    c = config()
    with c.unlocked():
        for name in ('kind', 'query_value_bias', 'pixel_mean', 'pixel_std', 'position_grid'):
            del c.model.encoder[name]
    found, wanted = shapes(c), shapes(config())
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a.shape, b.shape), found, wanted))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'kind': 'clip'}, 'model.encoder.kind.*dinov3.*siglip2'),
        ({'kind': 'siglip2', 'heads': 3}, 'model.encoder.width=32.*model.encoder.heads=3'),
        ({'kind': 'siglip2', 'unroll': 9}, 'model.encoder.unroll=9'),
    ],
)
def test_what_cannot_be_built_names_its_field(changes, words):
    with pytest.raises(UserError, match=words):
        unified.build(config(**changes), 300)
