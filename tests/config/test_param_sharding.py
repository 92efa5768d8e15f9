"""Sharding of the paper's models: golden layouts, and no large array is replicated."""

import functools
import math

import jax
import pytest
from jax.sharding import PartitionSpec as P

from configs import paper
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import make_mesh
from rf_jax.runtime.sharding import path_name
from rf_jax.training import jitted

pytestmark = pytest.mark.slow

LAYER = 'backbone/layers'
GOLDEN = {
    # D x heads: the width is gathered before use, the heads stay sharded.
    f'{LAYER}/attention/query/kernel': P(None, 'fsdp', 'tensor'),
    f'{LAYER}/output/kernel': P(None, 'tensor', 'fsdp'),
    f'{LAYER}/pixels/gate': P(None, ('expert', 'fsdp'), 'data', None),  # expert by expert
    f'{LAYER}/pixels/down': P(None, ('expert', 'fsdp'), 'data', None),
    f'{LAYER}/representation/router': P(None, 'fsdp', None),
    f'{LAYER}/ffn_norm/scale': P(None, 'fsdp'),
    'encoder/layers/ffn/up/kernel': P(None, 'fsdp', 'tensor'),
    'encoder/layers/ffn/down/kernel': P(None, 'tensor', 'fsdp'),
    'text_embed/table': P('tensor', 'fsdp'),
    'text_head/kernel': P('fsdp', 'tensor'),
    'representation_head/logits/kernel': P('fsdp', 'tensor'),
    'patch_out/patch/kernel': P('fsdp', 'tensor'),
}


def sizes(**changes):
    return {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | changes


@functools.cache
def built(size='30B-A3B', offload=()):
    config = paper.get_config(f'joint/{size}')
    config.data.batch_size, config.offload = 8, offload
    mesh = make_mesh(sizes(fsdp=4, expert=2))
    return jitted.build(config, config.tokenizer.vocab_size, mesh, 'tpu')


def specs(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): leaf.sharding.spec for path, leaf in leaves}


def test_parameters_are_sharded_as_the_table_says():
    found = specs(built().abstract.params)
    assert {path: found[path] for path in GOLDEN} == GOLDEN


def test_ema_and_optimizer_are_sharded_like_their_parameters():
    state = built().abstract
    wanted = specs(state.params)
    assert specs(state.ema) == wanted
    moments = {path: spec for path, spec in specs(state.opt_state).items() if '/mu/' in path}
    assert {path.split('/mu/')[1]: spec for path, spec in moments.items()} == wanted


@pytest.mark.parametrize('size', ['30B-A3B', '1.7B', '0.6B'])
def test_no_device_holds_much_more_than_its_share(size):
    state = built(size).abstract
    whole = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    # Dense models do not use the expert axis, 2 of 8 devices here.
    share = 8 if size == '30B-A3B' else 4
    assert jitted.nbytes_per_device(state) < 1.05 * whole / share


def test_offloaded_parts_are_in_host_memory():
    state = built('0.6B', ('ema',)).abstract
    assert {a.sharding.memory_kind for a in jax.tree.leaves(state.ema)} == {'pinned_host'}
    assert {a.sharding.memory_kind for a in jax.tree.leaves(state.params)} == {'device'}
    with pytest.raises(UserError, match="offload='params' is not known"):
        built('0.6B', ('params',))


def test_capacities_must_be_multiples_of_the_context_axis():
    config = paper.get_config('joint/0.6B')
    config.data.batch_size, config.data.capacity.vision_images = 2, 9
    with pytest.raises(UserError, match=r'vision_images=9 is not a multiple of mesh\.context=4'):
        jitted.build(config, 1000, make_mesh(sizes(fsdp=2, context=4)), 'tpu')
