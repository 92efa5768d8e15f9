"""DINOv3 of transformers, saved, loaded through `hf:` into our encoder: the same features."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from originals import dinov3, qwen3, save, torch
from weight_folders import config_of, loaded

from rf_jax.data import image_ops, layout, patch_grid

pytestmark = pytest.mark.slow

SIZES = [(4, 6), (2, 4), (6, 2)]  # in patches


@pytest.fixture(scope='module', params=[False, True], ids=['gelu', 'swiglu'])
def both(request, tmp_path_factory):
    """(original, programs, params)"""
    folder = tmp_path_factory.mktemp('models')
    original = dinov3(request.param)
    text = save(qwen3(), folder / 'qwen3')
    run, state = loaded(config_of(text, save(original, folder / 'dinov3')))
    return original, run, state.params


def images(seed):
    """Arrays [H, W, 3] as the encoder sees them."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(16 * h, 16 * w, 3)).astype(np.float32) for h, w in SIZES]


def packed(pictures, capacity):
    """One row: patches, image of each, coordinates; and where each picture is."""
    sizes = dict.fromkeys(layout.SIZES, 0) | {'vision': capacity // 4, 'vision_images': 4}
    row, slices, at = layout.Row(sizes, 768), [], 0
    patches = np.zeros((1, capacity, 768), np.float32)
    for (height, width), picture in zip(SIZES, pictures):
        row.add([layout.Vision(height, width)])
        slices.append(slice(at, at + height * width))
        patches[0, slices[-1]] = image_ops.patchify(picture, 16)
        at += height * width
    return patches, row.arrays['vision_image'][None], row.arrays['vision_coords'][None], slices


def originals_features(original, picture):
    """(before the norm, after it), patches in our order."""
    kept = []
    hook = original.norm.register_forward_hook(lambda module, given, out: kept.append(given[0]))
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].to(original.dtype)
    after = original(pixels).last_hidden_state
    hook.remove()
    first = 1 + original.config.num_register_tokens
    height, width = picture.shape[0] // 16, picture.shape[1] // 16
    cells = patch_grid.patch_cells(height, width)
    order = torch.tensor(cells[:, 0] * width + cells[:, 1])
    return [x[0, first:][order] for x in (kept[0], after)]


def encode(run, params, *given, dtype=jnp.float32):
    def forward(model, patches, image, coords):
        return model.encoder(patches, image, coords, 4)

    given = (jnp.asarray(given[0], dtype), *given[1:])
    return jax.jit(lambda p, *a: run.model.apply({'params': p}, *a, method=forward))(params, *given)


def distance(ours, theirs):
    theirs = theirs.detach().float().numpy()
    return np.abs(np.asarray(ours, np.float32) - theirs).max() / np.abs(theirs).max()


def test_features_before_and_after_the_norm(both):
    """Three pictures of different shapes and padding in one row."""
    original, run, params = both
    pictures = images(0)
    *given, slices = packed(pictures, 64)
    ours = encode(run, params, *given)
    for picture, where in zip(pictures, slices):
        for mine, theirs in zip(ours, originals_features(original, picture)):
            assert distance(mine[0, where], theirs) < 2e-5


def test_bfloat16(both):
    original, run, params = both
    pictures = images(1)
    *given, slices = packed(pictures, 64)
    ours = encode(run, params, *given, dtype=jnp.bfloat16)
    rounded = copy.deepcopy(original).to(torch.bfloat16)
    for picture, where in zip(pictures, slices):
        for mine, theirs in zip(ours, originals_features(rounded, picture)):
            assert distance(mine[0, where], theirs) < 2e-2


def test_gradients_of_a_block(both):
    original, run, params = both
    pictures = images(2)
    patches, image, coords, slices = packed(pictures, 64)

    def loss(params):
        return jnp.mean(encode(run, params, patches, image, coords)[1][0, slices[0]] ** 2)

    ours = jax.device_get(jax.grad(loss)(params))['encoder']
    original.zero_grad()
    (originals_features(original, pictures[0])[1] ** 2).mean().backward()
    named = dict(original.named_parameters())
    layers = ours['layers']
    pairs = {
        'layer.0.attention.q_proj.weight': layers['query']['kernel'][0].T,
        'layer.0.attention.q_proj.bias': layers['query']['bias'][0],
        'layer.0.attention.k_proj.weight': layers['key']['kernel'][0].T,
        'layer.0.attention.v_proj.bias': layers['value']['bias'][0],
        'layer.0.attention.o_proj.weight': layers['output']['kernel'][0].T,
        'layer.0.layer_scale1.lambda1': layers['attention_scale'][0],
        'layer.0.layer_scale2.lambda1': layers['ffn_scale'][0],
        'layer.0.norm1.weight': layers['attention_norm']['scale'][0],
        'layer.0.norm2.bias': layers['ffn_norm']['bias'][0],
        'layer.0.mlp.up_proj.weight': layers['ffn']['up']['kernel'][0].T,
        'layer.0.mlp.down_proj.weight': layers['ffn']['down']['kernel'][0].T,
        'embeddings.register_tokens': ours['class_and_registers'][None, 1:],
        'embeddings.cls_token': ours['class_and_registers'][None, :1],
    }
    for name, mine in pairs.items():
        (theirs,) = (value.grad for key, value in named.items() if key.endswith(name))
        assert distance(mine, theirs) < 1e-4, name
