"""A checkpoint on a mesh for inference: the same images and words, and no parameter gathered."""

import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from ml_collections import ConfigDict
from shrink import shrink
from tiny_sampler import WORDS, drawn_in_a_chat, noisy_params

from configs import base
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation import placement
from rf_jax.generation.placement import Placement
from rf_jax.generation.sampler import Sampler
from rf_jax.models import unified
from rf_jax.planning import hlo
from rf_jax.runtime import checkpoint, model_flags, sharding
from rf_jax.runtime.errors import UserError

pytestmark = pytest.mark.slow

MESH = {'tensor': 2, 'expert': 2}  # and data 2
IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))


def small() -> ConfigDict:
    """No matrix of the model has the shape of activations of a few rows."""
    config = shrink(base.get_config())
    config.model.backbone.update(width=88, heads=4, kv_heads=2, ffn='moe')
    config.model.backbone.moe.feedforward = 24
    config.data.capacity.text = 160
    return config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A workdir with a checkpoint, written before there was a table for inference."""
    folder, config = tmp_path_factory.mktemp('run'), small()
    tokenizer = SentencePieceTokenizer.train(WORDS * 3, 288)
    params = noisy_params(unified.build(config, tokenizer.size), 0.15)
    fields = json.loads(config.to_json())
    del fields['sampling']['sharding']
    (folder / 'config.json').write_text(json.dumps(fields))
    (folder / 'tokenizer.model').write_bytes(tokenizer.model_bytes)
    saved = checkpoint.Checkpoints(folder / 'checkpoints', every=1, keep=1)
    saved.save(1, {'ema': params, 'step': np.int32(1)})
    saved.close()
    return folder


def outputs(sampler):
    generated = sampler.generate(['red apple', 'blue sky', 'cat'], seed=3)
    said = sampler.chat([{'role': 'user', 'content': 'a cat'}], images=False, max_tokens=20)
    generated.append(drawn_in_a_chat(sampler))
    images, codes = zip(*((each.image.astype(int), each.tokens) for each in generated))
    return np.stack(images), np.stack(codes), sampler.caption(IMAGES), said


@pytest.fixture(scope='module')
def meshed(folder):
    """(sampler on the mesh, its outputs, the texts of its programs)."""
    texts, jit = [], Placement.jit

    def recorded(self, program, **options):
        jitted = jit(self, program, **options)

        def call(*arguments):
            texts.append(jitted.lower(*arguments).compile().as_text())
            return jitted(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        sampler = Sampler.load(folder, mesh=MESH)
        patch.setattr(Placement, 'jit', recorded)
        found = outputs(sampler)
    return sampler, found, texts


def test_a_mesh_gives_what_one_device_gives(folder, meshed):
    plain = Sampler.load(folder)
    images, codes, captions, said = outputs(plain)
    changed = Sampler.load(folder, sampling={'steps': plain.options().steps + 1})
    assert changed.options().steps == plain.options().steps + 1
    assert len({each.tobytes() for each in codes}) == 4 and len(set(captions)) > 1
    assert np.abs(images - meshed[1][0]).max() <= 1
    np.testing.assert_array_equal(codes, meshed[1][1])
    assert (captions, said) == meshed[1][2:]


def leaves(params):
    return {sharding.path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}


def test_every_matrix_of_a_layer_is_sharded_and_none_over_data(meshed):
    found = leaves(meshed[0].params)
    ways = {'query/kernel': 2, 'output/kernel': 2, 'pixels/gate': 4, 'pixels/down': 4,
            'text_head/kernel': 2, 'text_embed/table': 2, 'logits/kernel': 2}  # fmt: skip
    for path, x in found.items():
        held = x.addressable_shards[0].data.nbytes
        parts = next((n for name, n in ways.items() if path.endswith(name)), None)
        assert parts is None or held * parts == x.nbytes, path
        assert not {'data', 'fsdp'} & set(jax.tree.leaves(tuple(x.sharding.spec))), path
    layers = [x for path, x in found.items() if path.startswith('backbone/layers')]
    held = sum(x.addressable_shards[0].data.nbytes for x in layers)
    assert held < 1.1 * sum(x.nbytes for x in layers) / 3, 'between tensor and tensor x expert'


def gathered(text):
    """{(shape without axes of size 1, JAX operation)} of the results of all-gathers."""
    return {
        (tuple(n for n in array.dims if n > 1), each.op_name)
        for computation in hlo.parse(text)[0].values()
        for each in computation.values()
        if each.op.removesuffix('-start') == 'all-gather'
        for array in each.arrays
    }


def test_no_program_gathers_a_parameter(meshed):
    sampler, _, texts = meshed
    assert len(texts) >= 8 and sum('all-reduce' in text for text in texts) >= 6
    whole = set()
    for x in leaves(sampler.params).values():
        if not x.sharding.is_fully_replicated:
            whole |= {s for s in (x.shape, x.shape[1:]) if len(s) > 1}  # of all layers, of one
    for text in texts:
        found = {(shape, name) for shape, name in gathered(text) if shape in whole}
        # Only activations have constraints, and those of a chat may have the shape of a weight.
        assert not {each for each in found if 'sharding_constraint' not in each[1]}


def test_bfloat16_is_read_from_the_checkpoint_except_for_the_islands(folder):
    sampler = Sampler.load(folder, mesh=MESH, dtype='bfloat16')
    for path, x in leaves(sampler.params).items():
        island = re.search(r'(scale|bias|router)$|^patch_in/time/|^patch_out/', path)
        assert x.dtype == ('float32' if island else 'bfloat16'), path
    assert sampler.model.dtype == 'bfloat16'
    half = sum(x.nbytes for x in jax.tree.leaves(sampler.params))
    shapes = Placement().shapes(sampler.params)
    assert half < 0.6 * sum(4 * x.size for x in jax.tree.leaves(shapes))
    assert all(isinstance(answer, str) for answer in sampler.caption(IMAGES))


@pytest.mark.parametrize(
    ('mesh', 'words'),
    [
        ({'tensor': 8}, r'^mesh: tensor=8 does not divide the heads of the model \(.*heads=4'),
        ({'tensor': 3}, r'mesh\.tensor=3 need a multiple of 3 devices'),
        ({'expert': 8}, r'num_experts=4 is not a multiple of mesh\.expert=8'),
        ({'fsdp': 2}, r"^mesh='fsdp' is not known"),
    ],
)
def test_a_mesh_that_the_model_cannot_use_is_one_line(folder, mesh, words):
    with pytest.raises(UserError, match=words) as found:
        Sampler.load(folder, mesh=mesh)
    assert '\n' not in str(found.value)


def test_axes_that_shard_no_parameter_become_data():
    given = Mesh(np.array(jax.devices()).reshape(2, 2, 2), ('fsdp', 'tensor', 'context'))
    found = Placement.for_inference(small(), given)
    sizes = {axis: size for axis, size in found.mesh.shape.items() if size > 1}
    assert (sizes, found.multiple) == ({'data': 4, 'tensor': 2}, 4)
    heads = [set(found.mesh.devices[:, 0, 0, i, 0].flat) for i in range(2)]
    assert heads == [set(given.devices[:, i].flat) for i in range(2)]
    assert placement.natural_sizes(small(), 16) == {'tensor': 2, 'expert': 4}


def test_rows_of_the_config_come_before_the_table():
    config = small()
    config.sampling.sharding = ((r'text_head/kernel$', ()),)
    tree = {'text_head': {'kernel': jax.ShapeDtypeStruct((32, 64), np.float32)}}
    (own,) = jax.tree.leaves(Placement.for_inference(config, MESH).shapes(tree))
    (usual,) = jax.tree.leaves(Placement.for_inference(small(), MESH).shapes(tree))
    assert own.sharding.is_fully_replicated and not usual.sharding.is_fully_replicated


def test_the_flag_of_a_mesh_names_axes():
    assert model_flags.MESH.parse('tensor:4,expert:2') == {'tensor': 4, 'expert': 2}
    for text in ('tensor', 'tensor=4', 'tensor:4;expert:2', 'tensor:-1'):
        with pytest.raises(ValueError, match='tensor:4,expert:2'):
            model_flags.MESH.parse(text)
