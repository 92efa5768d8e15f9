"""spaces/wan.py against diffusers' AutoencoderKLWan, on packed images of mixed sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from shrink import shrink
from table_params import params_of

from configs import base
from rf_jax.data.image_ops import patchify
from rf_jax.data.patch_grid import patch_cells
from rf_jax.interop import wan as interop
from rf_jax.models import packed_images, spaces, unified
from rf_jax.models.attention.blockwise import Blockwise
from rf_jax.models.attention.reference import Reference
from rf_jax.models.spaces import wan
from rf_jax.models.token_sharding import UNSHARDED
from rf_jax.runtime import sharding
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.mesh import make_mesh
from rf_jax.training.state import example_row

pytestmark = pytest.mark.slow
CONFIG = ConfigDict({'base_dim': 16, 'dim_mult': (1, 2, 4, 4), 'num_res_blocks': 2})
PATCH = 8  # odd numbers of patches too
SIZES = [(40, 56), (64, 64), (16, 80)]  # in pixels
IMAGES, PADDING = 4, 5


@pytest.fixture(scope='module')
def original():
    """A small AutoencoderKLWan with every weight, bias and norm away from its initial value."""
    torch = pytest.importorskip('torch')
    vae = pytest.importorskip('diffusers.models.autoencoders.autoencoder_kl_wan')
    model = vae.AutoencoderKLWan(base_dim=CONFIG.base_dim).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            is_norm = name.endswith('gamma')
            size = 0.2 if p.ndim == 1 or is_norm else (p[0].numel() / 3) ** -0.5
            p.copy_(size * torch.randn(p.shape, generator=generator) + is_norm)
    return model


@pytest.fixture(scope='module')
def params(original):
    tensors = {name: p.detach().numpy() for name, p in original.named_parameters()}
    return params_of(interop.vae, dict(original.config), tensors)['autoencoder']


@pytest.fixture(scope='module')
def pictures():
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (*size, 3)).astype(np.float32) for size in SIZES]


def raster(height: int, width: int) -> np.ndarray:
    return np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)


def packed(images):
    """(patches of each image in raster order, its index in the row, coordinates), with padding."""
    patches, owner, coords = [], [], []
    for number, x in enumerate(images):
        size = np.array(x.shape[:2]) // PATCH
        x = x.reshape(size[0], PATCH, size[1], PATCH, -1).swapaxes(1, 2)
        patches.append(x.reshape(size.prod(), -1))
        owner += [number] * size.prod()
        coords.append((raster(*size) + 0.5) / size * 2 - 1)
    patches.append(np.full((PADDING, patches[0].shape[1]), -1, np.float32))
    coords.append(np.zeros((PADDING, 2)))
    owner = np.int32([owner + [-1] * PADDING])
    return np.concatenate(patches)[None], owner, np.float32(np.concatenate(coords))[None]


def unpacked(patches, sizes, side: int) -> list[np.ndarray]:
    """Patches [1, P, C] of images of these sizes in patches to [height, width, channels] each."""
    found, at = [], 0
    for height, width in sizes:
        x = patches[0, at : at + height * width]
        x = np.asarray(x).reshape(height, width, side, side, -1).swapaxes(1, 2)
        found.append(x.reshape(height * side, width * side, -1))
        at += height * width
    return found


def codec(attention=None, dtype=jnp.float32):
    return wan.Autoencoder(CONFIG, attention or Reference(), UNSHARDED, dtype)


def apply(method, params, x, owner, coords, **options):
    module = codec(**options)
    run = jax.jit(
        lambda p, x: module.apply({'params': p}, x, (owner, coords, IMAGES), method=method)
    )
    return run(params, x)


GRIDS = [(height // PATCH, width // PATCH) for height, width in SIZES]


def of_original(model, method, x) -> np.ndarray:
    """[h, w, C] to what diffusers gives for it alone."""
    import torch

    with torch.no_grad():
        found = getattr(model, method)(torch.tensor(x).permute(2, 0, 1)[None, :, None])
    found = found.latent_dist.mean if method == 'encode' else found.sample
    return found[0, :, 0].permute(1, 2, 0).numpy()


def compare(found, wanted, share=2e-5):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.fixture(scope='module')
def latents(params, pictures):
    """Of one row with all pictures."""
    return np.asarray(apply('encode', params, *packed(pictures)))


def test_latents_equal_those_of_diffusers(original, pictures, latents):
    assert latents.shape[::2] == (1, 16) and np.isfinite(latents).all()
    mean, std = (np.float32(original.config[f'latents_{name}']) for name in ('mean', 'std'))
    for found, x in zip(unpacked(latents, GRIDS, 1), pictures):
        compare(found, (of_original(original, 'encode', x) - mean) / std)


def test_reconstructions_equal_those_of_diffusers(original, params):
    rng = np.random.default_rng(1)
    given = [rng.normal(size=(*grid, 16)).astype(np.float32) for grid in GRIDS]
    _, owner, coords = packed([np.zeros((*size, 3), np.float32) for size in SIZES])
    latents = np.zeros((*owner.shape, 16), np.float32)
    latents[0, :-PADDING] = np.concatenate([x.reshape(-1, 16) for x in given])
    patches = apply('decode', params, latents, owner, coords)
    mean, std = (np.float32(original.config[f'latents_{name}']) for name in ('mean', 'std'))
    clipped = 0.0
    for found, x in zip(unpacked(patches, GRIDS, PATCH), given):
        wanted = of_original(original, 'decode', x * std + mean)
        compare(found, wanted)
        clipped = np.mean(np.abs(wanted) == 1)
    assert 0 < clipped < 0.9


def test_patches_of_16_pixels_in_groups_are_the_same_latents(params, pictures, latents):
    """Z = 64, in the order of the data pipeline, against the row of patches of 8."""
    picture, wanted = pictures[1], unpacked(latents, GRIDS, 1)[1]
    at = patch_cells(4, 4)
    coords = np.float32((at + 0.5) / 4 * 2 - 1)[None]
    owner = np.zeros((1, 16), np.int32)
    found = apply('encode', params, patchify(picture, 16)[None], owner, coords)
    assert found.shape == (1, 16, 64)
    wanted = wanted.reshape(4, 2, 4, 2, 16).swapaxes(1, 2).reshape(4, 4, 64)
    np.testing.assert_allclose(found[0], wanted[at[:, 0], at[:, 1]], rtol=1e-4, atol=1e-5)


def test_attention_with_linear_memory_gives_the_same(params, pictures, latents):
    found = apply('encode', params, *packed(pictures), attention=Blockwise(16, 8))
    np.testing.assert_allclose(found[:, :-PADDING], latents[:, :-PADDING], atol=1e-4)


@pytest.mark.parametrize('pool', [2, 4])
def test_neighbours_are_those_of_the_image(pool):
    """Of two images in the order of the data pipeline and padding."""
    sizes = [(8, 4), (4, 12)]
    at = [patch_cells(*size, pool) for size in sizes]
    owner = np.int32([[0] * 32 + [1] * 48 + [-1] * 3])
    coords = np.concatenate([(a + 0.5) / size * 2 - 1 for a, size in zip(at, sizes)])
    coords = np.float32(np.concatenate([coords, np.zeros((3, 2))]))[None]
    found = np.asarray(packed_images.neighbours(owner, coords, 3))[0]
    places = {
        (number, *cell): i
        for i, (number, cell) in enumerate(
            (number, tuple(cell)) for number, cells in enumerate(at) for cell in cells.tolist()
        )
    }
    for (number, row, column), i in places.items():
        wanted = [
            [places.get((number, row + r, column + c), 83) for c in (-1, 0, 1)] for r in (-1, 0, 1)
        ]
        np.testing.assert_array_equal(found[i], wanted)
    assert (found[80:] == 83).all()


def config(**changes):
    config = shrink(base.get_config())
    config.model.space = 'wan'
    config.model.wan.update(base_dim=2, num_res_blocks=1)
    config.optimizer.freeze = ('^autoencoder/',)
    config.update_from_flattened_dict(changes)
    return config


def test_the_model_generates_64_values_for_each_patch():
    """All parameters exist after initialisation, and the table of sharding covers them."""
    c = config()
    model, batch = unified.build(c, 300), example_row(768)
    z = jnp.zeros((1, 4, 64))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), batch, batch['input_group'], z, z[..., 0]
    )['params']
    assert shapes['autoencoder'].keys() == {'encoder', 'decoder', 'quant_conv', 'post_quant_conv'}
    mesh = make_mesh({'data': 1, 'fsdp': 4, 'expert': 1, 'tensor': 2, 'context': 1})
    placed = sharding.shardings(shapes, mesh, c.sharding)['autoencoder']
    assert placed['encoder']['down_1_0']['conv2']['kernel'].spec[-2:] == ('fsdp', 'tensor')

    def shape(method, *given):
        run = lambda p, *given: model.apply({'params': p}, *given, method=method)  # noqa: E731
        return jax.eval_shape(run, shapes, *given).shape

    assert shape(model.clean, batch) == (1, 4, 64)
    assert shape(model.pixels, z, batch) == (1, 4, 768)


def test_flops_are_those_of_the_convolutions():
    """Of a patch far from edges: counted by hand over the kernels and the resolution of each."""
    c = config()
    model = unified.build(c, 300)
    where = np.zeros((1, 4), np.int32), np.zeros((1, 4, 2), np.float32), 1
    shapes = jax.eval_shape(
        lambda: model.space.codec(
            c.model, 768, model.attention, UNSHARDED, jnp.float32
        ).init(jax.random.key(0), np.zeros((1, 4, 768), np.float32), where, method='encode')
    )['params']  # fmt: skip
    products = 0
    for path, a in jax.tree_util.tree_leaves_with_path(shapes):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        if name.endswith('kernel'):
            level = 3
            if 'conv_in' in name or 'down_' in name:
                level = 0 if 'conv_in' in name else int(name.split('down_')[1][0])
            side = 16 >> (level + ('conv_down' in name))
            products += side**2 * a.size
    assert spaces.of(c).patch_flops(c) == 2 * products


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'optimizer.freeze': ()}, r"optimizer\.freeze=.*'\^autoencoder/'"),
        ({'data.patch_size': 12}, r'data\.patch_size=12 is not a multiple of 8'),
        ({'losses.reconstruction': 1.0}, r"losses\.reconstruction=1.0 needs model\.space='vae'"),
        ({'model.wan.dim_mult': ()}, r'model\.wan\.dim_mult'),
    ],
)
def test_what_cannot_be_trained_names_its_field(changes, words):
    c = config(**changes)
    with pytest.raises(UserError, match=words):
        spaces.of(c).check(c)
