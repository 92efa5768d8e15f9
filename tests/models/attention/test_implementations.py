"""All implementations of attention against the reference, on rows packed as in training."""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_inputs import config as encoder_config
from encoder_inputs import packed as packed_images

from configs import base
from rf_jax.data import layout
from rf_jax.data.layout import Pixels, Representation, Skip, Text, Vision
from rf_jax.models import transformer
from rf_jax.models.attention import masks, select
from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.models.attention.pallas import Pallas
from rf_jax.models.attention.reference import Cudnn, Reference
from rf_jax.models.attention.sharded import ShardedAttention
from rf_jax.models.attention.triton import Triton
from rf_jax.models.vision_encoder import VisionEncoder
from rf_jax.runtime import mesh as meshes
from rf_jax.runtime.errors import UserError

pytestmark = pytest.mark.slow

CAPACITY = {'text': 75, 'vision': 20, 'representation': 33, 'pixels': 94,
            'vision_images': 4, 'pixel_images': 6}  # fmt: skip
LENGTH = 222  # not a multiple of any block below
FORMS = {
    'blockwise': Blockwise(48, 64),
    'blockwise, one block': Blockwise(512, 512),
    'pallas': Pallas(48, 64, interpret=True),
    'pallas, other blocks': Pallas(80, 32, interpret=True),
    'triton': Triton(32, 64, interpret=True),
    'triton, other blocks': Triton(64, 16, interpret=True),
    'cudnn': Cudnn('xla'),  # the same call with another implementation
}
ROWS = [
    [
        [Text(range(11)), Representation(4, 4), Pixels(4, 4), Vision(4, 4), Text(range(5))],
        [Vision(4, 6), Text(range(17))],
        [Text(range(3)), Representation(4, 6), Pixels(4, 6, reads_representation=False)],
        [Text(range(7)), Representation(2, 4), Pixels(2, 4), Text(range(2)),
         Representation(4, 4, 1), Pixels(4, 4, None, 1)],
        [Skip(4), Representation(2, 2), Pixels(2, 2)],
    ],
    [[Text(range(60))], [Text(range(4)), Representation(4, 4), Pixels(4, 4)]],
]  # fmt: skip


def integers(rows, capacity):
    batch = layout.make_batch(rows, capacity, 12)
    return {name: batch[name] for name in masks.FIELDS}


def arrays(queries, keys, heads, kv_heads, head_dim, dtype, seed=0):
    """q, k, v and the gradient of the output."""
    rng = np.random.default_rng(seed)
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads), (queries, heads)]
    return [jnp.array(rng.normal(size=(2, *s, head_dim)), dtype) for s in shapes]


@partial(jax.jit, static_argnums=0)
def run(form, query, key, q, k, v, g):
    """(output, gradients of q, k, v), for queries with visible keys."""
    sees = masks.visible(query, key).any(-1)[..., None, None]
    prepared = form.prepare(query, key)
    out, pull = jax.vjp(lambda *inputs: form(*inputs, prepared), q, k, v)
    return jnp.where(sees, out, 0), *pull(jnp.where(sees, g, 0))


def compare(found, wanted, **tolerance):
    for name, a, b in zip(('out', 'dq', 'dk', 'dv'), found, wanted):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = (np.asarray(x, np.float32) for x in (a, b))
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, err_msg=name, **tolerance)


@pytest.mark.parametrize('name', FORMS)
@pytest.mark.parametrize(('heads', 'kv_heads'), [(4, 2), (3, 3)])
def test_implementations_equal_the_reference(name, heads, kv_heads):
    row = integers(ROWS, CAPACITY)
    assert row['segment'].shape == (2, LENGTH)
    inputs = arrays(LENGTH, LENGTH, heads, kv_heads, 16, jnp.float32)
    found = run(FORMS[name], row, row, *inputs)
    compare(found, run(Reference(), row, row, *inputs), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('name', FORMS)
def test_implementations_equal_the_reference_in_bfloat16(name):
    row = integers(ROWS, CAPACITY)
    inputs = arrays(LENGTH, LENGTH, 2, 1, 16, jnp.bfloat16)
    exact = run(Reference(), row, row, *(x.astype(jnp.float32) for x in inputs))
    found = run(FORMS[name], row, row, *inputs)
    compare(found, [x.astype(jnp.bfloat16) for x in exact], rtol=0.05, atol=0.05)


@pytest.mark.parametrize('name', FORMS)
def test_queries_can_be_a_part_of_the_row_and_keys_can_be_unwritten(name):
    """As in generation: noisy patches after a KV cache, one entry of which is not written yet."""
    row = integers(ROWS, CAPACITY)
    own = {field: x[:, 128:] for field, x in row.items()}
    gap = np.arange(LENGTH) == 2
    key = row | {'segment': np.where(gap, -1, row['segment'])}
    inputs = arrays(LENGTH - 128, LENGTH, 2, 1, 8, jnp.float32)
    found, wanted = (run(form, own, key, *inputs) for form in (FORMS[name], Reference()))
    compare(found, wanted, rtol=2e-5, atol=2e-5)
    assert (np.asarray(found[2])[:, 2] == 0).all()
    full = run(FORMS[name], own, row, *inputs)
    assert (np.asarray(full[2])[:, 2] != 0).any()


@pytest.mark.parametrize('name', ['blockwise', 'pallas', 'triton'])
def test_padding_gives_zero_and_masked_tiles_are_skipped(name):
    """A NaN affects all tiles that read it, and only those."""
    row, form = integers(ROWS, CAPACITY), FORMS[name]
    q, k, v, _ = arrays(LENGTH, LENGTH, 2, 1, 8, jnp.float32)
    prepared = form.prepare(row, row)
    out = np.asarray(form(q, k, v, prepared))
    padding = row['segment'] == 0
    assert padding.any() and (out[padding] == 0).all()
    read = masks.tiles(row, row, form.block_q, form.block_k)
    if name == 'pallas':  # which computes each output once
        read[:, :, 0] |= ~read.any(2)
    elif name == 'blockwise':  # one branch for all rows
        read[:] = read.any(0)
    for block in range(read.shape[2]):
        spoilt = v.at[:, block * form.block_k : (block + 1) * form.block_k].set(jnp.nan)
        good = np.isfinite(form(q, k, spoilt, prepared)).all((2, 3))
        for i in range(read.shape[1]):
            here = good[:, i * form.block_q : (i + 1) * form.block_q]
            assert (here.all(1) | read[:, i, block]).all()
    assert not read.all()


def long_row():
    """4,096 tokens of about forty examples."""
    rng = np.random.default_rng(0)
    capacity = {'text': 1024, 'vision': 512, 'representation': 512, 'pixels': 2048,
                'vision_images': 40, 'pixel_images': 40}  # fmt: skip
    row = layout.Row(capacity, 12)
    while True:
        height, width = (2 * int(side) for side in rng.integers(2, 7, 2))
        text = Text(range(int(rng.integers(5, 50))))
        if rng.random() < 0.5:
            spans = [Vision(height, width), text]
        else:
            reads = bool(rng.random() < 0.9)
            spans = [text, Representation(height, width),
                     Pixels(height, width, reads_representation=reads)]  # fmt: skip
        try:
            row.add(spans)
        except ValueError:
            break
    assert row.examples > 25
    return {name: row.arrays[name][None] for name in masks.FIELDS}


def any_visible(row, block_q, block_k):
    mask = np.asarray(masks.visible(row, row))
    queries, keys = (-(-mask.shape[1] // block) for block in (block_q, block_k))
    extra = queries * block_q - mask.shape[1], keys * block_k - mask.shape[2]
    mask = np.pad(mask, ((0, 0), (0, extra[0]), (0, extra[1])))
    return mask.reshape(-1, queries, block_q, keys, block_k).any((2, 4))


@pytest.mark.parametrize('blocks', [(48, 64), (64, 16), (8, 8), (1, 1), (300, 300)])
def test_tiles_are_those_with_a_visible_pair(blocks):
    row = integers(ROWS, CAPACITY)
    tiles, needed = masks.tiles(row, row, *blocks), any_visible(row, *blocks)
    assert isinstance(tiles, np.ndarray)
    np.testing.assert_array_equal(tiles, needed)
    traced = jax.jit(masks.tiles, static_argnums=(2, 3))(row, row, *blocks)
    np.testing.assert_array_equal(traced, needed)


def test_with_more_examples_than_slots_no_tile_is_missed(monkeypatch):
    monkeypatch.setattr(masks, 'SLOTS', 3)
    row = long_row()
    tiles, needed = masks.tiles(row, row, 128, 64), any_visible(row, 128, 64)
    assert tiles[needed].all() and needed.sum() < tiles.sum() < tiles.size


def test_few_tiles_of_a_packed_row_are_computed():
    row = long_row()
    share = masks.tiles(row, row, 128, 128).mean()
    assert share == any_visible(row, 128, 128).mean() < 0.15


def test_a_tile_list_has_each_tile_once_and_every_output_block():
    tiles = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    tiles[0, 2] = tiles[1] = False
    given = jax.tree.map(np.asarray, masks.tile_list(jnp.array(tiles)))
    for row in range(3):
        wanted = [(i, j) for i in range(5) for j in range(7)
                  if tiles[row, i, j] or (j == 0 and not tiles[row, i].any())]  # fmt: skip
        pairs = [(int(at) >> 16, int(at) & 0xFFFF) for at in given['at'][row]]
        assert given['count'][row] == len(wanted)
        assert pairs == wanted + [wanted[-1]] * (35 - len(wanted))


def sizes_of(jaxpr):
    """Elements of every intermediate result, within loops and kernels too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(getattr(variable.aval, 'shape', ())))
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from sizes_of(inner)


@pytest.mark.parametrize('form', [Blockwise(256, 256), Pallas(256, 256), Reference()])
def test_memory_is_linear_in_the_length(form):
    row = {name: jax.ShapeDtypeStruct((1, 4096), jnp.int32) for name in masks.FIELDS}
    x = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)

    def loss(q, k, v, row):
        return form(q, k, v, form.prepare(row, row)).sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, x, x, row)
    most = max(sizes_of(jaxpr.jaxpr))
    assert (most >= 4096**2) == (form == Reference())
    assert most >= 256**2, 'the logits of a tile should be seen'


@cache
def backbone_outputs(form, remat='none'):
    config = base.get_config()
    config.model.backbone.update(
        layers=2, width=16, heads=4, kv_heads=2, head_dim=8, feedforward=12, remat=remat
    )
    config.model.backbone.rope_sections = (2, 1, 1)
    backbone = transformer.build(config, form, 'cpu')()
    row = integers(ROWS, CAPACITY)
    position = jnp.array(layout.make_batch(ROWS, CAPACITY, 12)['position'])
    lengths = 95, 33, 94
    x = jax.random.normal(jax.random.key(0), (2, LENGTH, 16))
    # The parameter tree must not depend on the implementation.
    born = jax.eval_shape(
        lambda key: backbone.init(key, x, position, form.prepare(row, row), lengths),
        jax.random.key(0),
    )
    leaves, structure = jax.tree.flatten(born['params'])
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [rng.normal(size=a.shape) * 0.3 for a in leaves])

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(params):
        seen = form.prepare(row, row)
        out, *_ = backbone.apply({'params': params}, x, position, seen, lengths)
        real = (row['segment'] > 0)[..., None]
        return jnp.sum(jnp.sin(out) * real), jnp.where(real, out, 0)

    return gradient(jax.tree.map(lambda a: a.astype(np.float32), params))


@pytest.mark.parametrize(
    ('form', 'remat'),
    [(FORMS['blockwise'], 'none'), (FORMS['pallas'], 'full'), (FORMS['triton'], 'attention')],
)
def test_the_backbone_is_the_same_with_every_implementation(form, remat):
    (found, out), (wanted, right) = backbone_outputs(form, remat), backbone_outputs(Reference())
    np.testing.assert_allclose(out, right, atol=1e-4)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
        assert np.abs(b).max() > 0


def test_the_encoder_is_the_same_with_linear_memory():
    patches, image, coords, _ = packed_images([(4, 6), (2, 4)], 40, 3, seed=0)
    towers = [VisionEncoder(encoder_config(False), f) for f in (Reference(), Blockwise(16, 8))]
    params = jax.jit(towers[0].init, static_argnums=4)(jax.random.key(0), patches, image, coords, 3)
    one, other = (
        jax.jit(t.apply, static_argnums=4)(params, patches, image, coords, 3)[0] for t in towers
    )
    real = image[0] >= 0
    np.testing.assert_allclose(one[:, real], other[:, real], atol=1e-5)


@pytest.mark.parametrize('name', ['blockwise', 'pallas', 'triton'])
@pytest.mark.parametrize('sizes', [{'data': 2, 'tensor': 2, 'context': 2}, {'context': 4}])
def test_sharded_attention_equals_one_device(name, sizes):
    """Rows, heads and parts of rows on their own devices; two heads are not sharded over four."""
    axes = {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'context': 1} | sizes
    mesh = meshes.make_mesh(axes, jax.devices()[: math.prod(axes.values())])
    capacity = {key: -(-value // 4) * 4 for key, value in CAPACITY.items()}
    batch, length = integers(ROWS, capacity), sum(capacity[s] for s in layout.STREAMS)
    inputs = arrays(length, length, 4, 2, 8, jnp.float32)
    wanted = run(Reference(), batch, batch, *inputs)
    found = run(ShardedAttention(FORMS[name], mesh), batch, batch, *inputs)
    compare(found, wanted, rtol=2e-5, atol=2e-5)


def fields(**changes):
    config = base.get_config()
    config.model.attention.update(changes)
    return config


def test_auto_follows_the_platform_and_the_length():
    pallas, blockwise = Pallas(512, 512), Blockwise(512, 512)
    for platform, long, shorter, longer in (
        ('tpu', 512, Reference(), pallas),
        ('cpu', 4097, Reference(), blockwise),
        ('gpu', 128, Reference(), Cudnn()),
        ('gpu', 8193, Cudnn(), Triton()),
    ):
        form = select.build(fields(), platform)
        assert form._choice(long - 1, long - 1) == shorter
        assert form._choice(long, long) == longer
    assert select.build(fields(implementation='pallas'), 'tpu') == Pallas(512, 512)
    assert select.build(fields(implementation='pallas'), 'cpu') == Pallas(512, 512, interpret=True)


def test_auto_equals_the_reference_bit_by_bit_on_short_rows():
    row = integers(ROWS, CAPACITY)
    inputs = arrays(LENGTH, LENGTH, 4, 2, 16, jnp.float32)
    found = run(select.build(base.get_config()), row, row, *inputs)
    for a, b in zip(found, run(Reference(), row, row, *inputs)):
        np.testing.assert_array_equal(a, b)


def test_cudnn_pads_odd_lengths_and_uses_the_reference_for_what_it_does_not_support():
    row = integers(ROWS, CAPACITY)
    odd = {name: x[:, :-1] for name, x in row.items()}
    inputs = arrays(LENGTH - 1, LENGTH - 1, 2, 1, 8, jnp.float32)
    wanted = run(Reference(), odd, odd, *inputs)
    compare(run(Cudnn('xla'), odd, odd, *inputs), wanted, rtol=2e-5, atol=2e-5)
    for a, b in zip(run(Cudnn(), odd, odd, *inputs), wanted):  # cuDNN is not available here
        np.testing.assert_array_equal(a, b)
    wide = arrays(LENGTH - 1, LENGTH - 1, 2, 1, 160, jnp.bfloat16)  # wider heads than it takes
    for a, b in zip(run(Cudnn(), odd, odd, *wide), run(Reference(), odd, odd, *wide)):
        np.testing.assert_array_equal(a, b)
    q, k, v, _ = arrays(8, 7, 2, 1, 8, jnp.bfloat16)
    shapes = []

    def note(q, k, v, mask, implementation):
        shapes.append((q.shape, k.shape, mask.shape, implementation))
        return q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, 'dot_product_attention', note)
        Cudnn()(q, k, v, jnp.ones((2, 8, 7), bool))
    assert shapes == [((2, 8, 2, 8), (2, 8, 1, 8), (2, 1, 8, 8), 'cudnn')]


@pytest.mark.parametrize(
    ('changes', 'field'),
    [
        ({'implementation': 'flsh'}, 'implementation'),
        ({'block_q': 100}, 'block_q'),
        ({'block_k': 0}, 'block_k'),
    ],
)
def test_impossible_fields_are_errors(changes, field):
    with pytest.raises(UserError, match=f'model.attention.{field}'):
        select.build(fields(**changes))


def test_blocks_grow_if_the_list_of_tiles_would_be_too_long():
    form = Pallas(256, 128)
    assert form.sizes(1, 32_768, 32_768) == (256, 128)
    assert form.sizes(1, 200, 1000) == (256, 128)
    assert form.sizes(1, 94_000, 94_000) == (512, 256)
    assert form.sizes(16, 32_768, 32_768) == (512, 256)
