"""siglip2_encoder.py against transformers' Siglip2VisionModel, image by image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_inputs import CHANNELS, packed
from ml_collections import ConfigDict
from table_params import params_of

from rf_jax.data.patch_grid import patch_cells
from rf_jax.interop import siglip2 as interop
from rf_jax.models import siglip2_encoder
from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.models.attention.reference import Reference
from rf_jax.models.siglip2_encoder import Siglip2Encoder

pytestmark = pytest.mark.slow
WIDTH, HEADS, FEEDFORWARD, LAYERS, SIDE = 36, 2, 52, 3, 16
# Wide, tall, as large as the table and larger, and a column; four images, then padding.
SIZES = [(2, 14), (8, 6), (16, 18), (10, 2)]
CAPACITY, IMAGES = 400, 6


def config(**changes) -> ConfigDict:
    return ConfigDict({
        'kind': 'siglip2', 'layers': LAYERS, 'width': WIDTH, 'heads': HEADS,
        'feedforward': FEEDFORWARD, 'position_grid': SIDE, 'norm_eps': 1e-6,
        'remat': 'none', 'unroll': 1,
    } | changes)  # fmt: skip


@pytest.fixture(scope='module')
def original():
    """A small Siglip2VisionModel with every weight, bias and norm away from its initial value."""
    torch = pytest.importorskip('torch')
    siglip2 = pytest.importorskip('transformers.models.siglip2.modeling_siglip2')
    model = siglip2.Siglip2VisionModel(siglip2.Siglip2VisionConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=FEEDFORWARD,
        num_hidden_layers=LAYERS, num_patches=SIDE**2, patch_size=2, vision_use_head=False,
        attn_implementation='eager',
    )).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_norm = 'norm' in name and name.endswith('weight')
            size = p.shape[-1] ** -0.5 if p.ndim == 2 and 'position' not in name else 0.3
            p.copy_(size * torch.randn(p.shape, generator=generator) + is_norm)
    return model


def converted(original, read) -> dict:
    """`read` of each parameter of the original, as the tree of our module."""
    tensors = {name: read(p).numpy() for name, p in original.named_parameters()}
    return params_of(interop.naflex, original.config.to_dict(), tensors)['encoder']


@pytest.fixture(scope='module')
def params(original):
    return converted(original, lambda p: p.detach())


def of_original(model, patches, size):
    """(features before the final norm, and after it) of one image, in our order of patches."""
    import torch

    at = patch_cells(*size)
    grid = np.zeros((*size, CHANNELS), np.float32)
    grid[at[:, 0], at[:, 1]] = patches
    kept = []
    hook = model.encoder.layers[-1].register_forward_hook(lambda *a: kept.append(a[2]))
    at = torch.tensor(at)
    inputs = torch.tensor(grid.reshape(1, -1, CHANNELS))
    mask, shapes = torch.ones(1, inputs.shape[1]), torch.tensor([size])
    after = model(inputs, mask, shapes).last_hidden_state
    hook.remove()
    before = kept[0][0] if isinstance(kept[0], tuple) else kept[0]
    return [x[0].reshape(*size, -1)[at[:, 0], at[:, 1]] for x in (before, after)]


def run(params, inputs, images=IMAGES, attention=None, dtype=jnp.float32, **changes):
    patches, image, coords = inputs
    module = Siglip2Encoder(config(**changes), attention or Reference())
    apply = jax.jit(module.apply, static_argnums=4)
    return apply({'params': params}, jnp.asarray(patches, dtype), image, coords, images)


def compare(found, wanted, share):
    largest = np.abs(wanted).max()
    np.testing.assert_allclose(np.float32(found), wanted, rtol=0, atol=share * largest)


@pytest.mark.parametrize(('dtype', 'share'), [('float32', 2e-5), ('bfloat16', 2e-2)])
def test_packed_images_equal_the_original_on_each_alone(original, params, dtype, share):
    *inputs, slices = packed(SIZES, CAPACITY, IMAGES, seed=0)
    features, normed = run(params, inputs, dtype=dtype)
    assert np.isfinite(features).all() and np.isfinite(normed).all()  # padding too
    for size, where in zip(SIZES, slices):
        before, after = (
            x.detach().numpy() for x in of_original(original, inputs[0][0, where], size)
        )
        compare(features[0, where], before, share)
        compare(normed[0, where], after, share)
        assert np.abs(before - after).max() > 0.1 * np.abs(after).max()


def test_gradients_of_a_block_equal_those_of_the_original(original, params):
    """Of layer 1, over an image to which the table is enlarged and one to which it is reduced."""
    import torch

    sizes = [(4, 18), (6, 4)]
    *inputs, slices = packed(sizes, 120, 3, seed=1)
    weights = np.random.default_rng(2).normal(size=(1, 120, WIDTH)).astype(np.float32)
    weights[inputs[1] < 0] = 0

    def loss(params):
        return jnp.sum(weights * run(params, inputs, 3)[1])

    found = jax.jit(jax.grad(loss))(params)
    original.zero_grad()
    total = sum(
        (
            of_original(original, inputs[0][0, where], size)[1] * torch.tensor(weights[0, where])
        ).sum()
        for size, where in zip(sizes, slices)
    )
    total.backward()
    wanted = converted(original, lambda p: p.grad)
    block = jax.tree.map(lambda a: a[1], (found['layers'], wanted['layers']))
    pairs = zip(*map(jax.tree.leaves, block))
    softmax = np.abs(wanted['layers']['value']['bias']).max()  # the key's bias cancels in it
    for a, b in [*pairs, (found['position']['table'], wanted['position']['table'])]:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(np.abs(b).max(), 1e-2 * softmax))


@pytest.mark.parametrize('size', [(2, 2), (16, 16), (6, 10), (40, 16), (64, 34)])
def test_the_table_is_resized_bilinearly_with_antialias(size):
    """As by jax.image.resize, for one image among others in a row."""
    table = np.random.default_rng(0).normal(size=(SIDE, SIDE, 5)).astype(np.float32)
    sizes = [(4, 4), size, (8, 2)]
    area = sum(h * w for h, w in sizes) + 8
    _, image, coords, slices = packed(sizes, area, 4, seed=0)
    weights = jax.jit(siglip2_encoder.resize_weights, static_argnums=(2, 3))(image, coords, 4, SIDE)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    rows, columns = np.moveaxis(np.asarray(weights)[0, slices[1]], 1, 0)
    found = np.einsum('pr,pc,rcd->pd', rows, columns, table)
    wanted = jax.image.resize(table, (*size, 5), 'bilinear', antialias=True)
    at = patch_cells(*size)
    np.testing.assert_allclose(found, wanted[at[:, 0], at[:, 1]], atol=1e-5)


def random_params(inputs, images):
    module = Siglip2Encoder(config(), Reference())
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *map(jnp.asarray, inputs), images)['params']
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)


def test_an_image_depends_only_on_itself():
    *inputs, slices = packed([(4, 6), (2, 4)], 40, 3, seed=1)
    params = random_params(inputs, 3)
    features, _ = run(params, inputs, 3)
    patches = inputs[0].copy()
    patches[0, slices[1].start :] += 1  # the second image and the padding
    changed, _ = run(params, (patches, *inputs[1:]), 3)
    np.testing.assert_array_equal(features[0, slices[0]], changed[0, slices[0]])
    assert (features[0, slices[1]] != changed[0, slices[1]]).any(-1).all()


@pytest.mark.parametrize(
    'changes', [{'remat': 'full'}, {'unroll': 3}, {'attention': Blockwise(16, 8)}], ids=str
)
def test_how_it_is_computed_changes_nothing(changes):
    *inputs, _ = packed([(4, 6), (2, 4)], 40, 3, seed=1)
    params = random_params(inputs, 3)
    real = inputs[1][0] >= 0
    found, wanted = run(params, inputs, 3, **changes)[0], run(params, inputs, 3)[0]
    np.testing.assert_allclose(found[:, real], wanted[:, real], rtol=1e-5, atol=1e-4)
