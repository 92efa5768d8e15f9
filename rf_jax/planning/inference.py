"""Compiles what a model does after training, sharded as `Sampler.load` shards it, in bfloat16."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from rf_jax.data import layout, spans
from rf_jax.generation import captioning, image_sampling
from rf_jax.generation.placement import Placement
from rf_jax.models import encoders, unified
from rf_jax.planning.ahead_of_time import KERNELS, Cost, cost, tile_pairs
from rf_jax.runtime import mesh
from rf_jax.training import optimizer, state

PROMPT = 64  # text tokens of a prompt or question


def sample(config: ConfigDict, vocabulary: int, mesh_: Mesh) -> Cost:
    """Cost of generating an image of the largest size with guidance, one row per data-parallel
    shard at once.
    """
    placement, model, params = _sharded(config, vocabulary, mesh_)
    side = max(size for size, _ in config.data.sizes) // config.data.patch_size
    pool = spans.pool_of(config)
    tokens = side**2 // pool**2 + 1 if pool else 0
    capacity = {'text': PROMPT, 'vision': 0, 'representation': tokens, 'pixels': side**2,
                'vision_images': 0, 'pixel_images': 1}  # fmt: skip
    row, count = _rows(placement, capacity, model.channels), placement.multiple
    options = image_sampling.options(config)
    weights = options.without_images().weights()
    rows = dict.fromkeys(weights.rows(), row)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
    keys = jax.ShapeDtypeStruct(
        keys.shape, keys.dtype, sharding=mesh.batch_sharding(placement.mesh)
    )
    program = placement.jit(partial(image_sampling.generate, model, config, options))
    pixels, before = side**2, PROMPT + tokens
    platform = mesh_.devices.flat[0].platform
    pairs = {'': len(weights.pixels) * _pairs(config, platform, pixels, before + pixels)}
    size = side * config.data.patch_size
    return cost(
        'sample',
        program,
        (params, rows, keys, weights),
        placement.mesh,
        config,
        kernel_flops=_kernel_flops(config, placement.mesh, pairs),
        made=count,
        unit=f'images of {size} x {size} pixels',
    )


def answer(config: ConfigDict, vocabulary: int, mesh_: Mesh) -> Cost:
    """Cost of answering a question about an image of the largest size, with the longest answer,
    one row per data-parallel shard at once.
    """
    placement, model, params = _sharded(config, vocabulary, mesh_)
    length = config.sampling.max_answer_tokens
    patches = (max(size for size, _ in config.data.sizes) // config.data.patch_size) ** 2
    capacity = {'text': PROMPT + length, 'vision': patches // 4, 'representation': 0, 'pixels': 0,
                'vision_images': 1, 'pixel_images': 0}  # fmt: skip
    row, count = _rows(placement, capacity, model.channels), placement.multiple
    lengths = jax.ShapeDtypeStruct((count,), np.int32, sharding=mesh.batch_sharding(placement.mesh))
    program = placement.jit(partial(captioning.answer, model, length=length, ends=(0,)))
    known = PROMPT + patches // 4
    extra = patches + encoders.own_tokens(config)
    platform = mesh_.devices.flat[0].platform
    sizes = {'': known, 'encoder': extra}
    pairs = {tower: _pairs(config, platform, size, size) for tower, size in sizes.items()}
    return cost(
        'answer',
        program,
        (params, row, lengths),
        placement.mesh,
        config,
        kernel_flops=_kernel_flops(config, placement.mesh, pairs),
        made=count * length,
        unit=f'tokens, {count} answers of {length}',
    )


def _sharded(config: ConfigDict, vocabulary: int, mesh_: Mesh):
    """(placement, model, shapes of its parameters)."""
    placement = Placement.for_inference(config, mesh_, 'bfloat16')
    platform = mesh_.devices.flat[0].platform
    alone = unified.build(config, vocabulary, platform=platform)
    c = config.model
    new = jax.eval_shape(
        lambda: state.initialise(
            *(alone, partial(optimizer.build, config.optimizer, steps=config.steps)),
            *(c.representation.codebook_size, c.encoder.width, config.seed),
        )
    )
    params = placement.by_layer(placement.shapes(new.ema))
    return placement, placement.model(config, vocabulary, platform), params


def _rows(placement: Placement, capacity: Mapping[str, int], channels: int):
    """Shapes of a batch with one row for each place of the mesh."""
    where = mesh.batch_sharding(placement.mesh)
    return {
        name: jax.ShapeDtypeStruct((placement.multiple, *a.shape), a.dtype, sharding=where)
        for name, a in layout.empty(capacity, channels).items()
    }


def _pairs(config: ConfigDict, platform: str, queries: int, keys: int) -> float:
    """Pairs in the tiles of a row in which each of the keys is visible to each query."""
    integers = [
        {'segment': np.ones((1, n), np.int32), 'order': np.zeros((1, n), np.int32),
         'reach': np.zeros((1, n), np.int32), 'block': np.zeros((1, n), np.int32)}
        for n in (queries, keys)
    ]  # fmt: skip
    return tile_pairs(config.model.attention, platform, *integers)


def _kernel_flops(config: ConfigDict, mesh_: Mesh, pairs: Mapping[str, float]) -> Callable:
    """The `kernel_flops` of `cost`, for one row on a chip; `pairs` of the backbone ('') and of the
    encoder.
    """
    model, ways = config.model, mesh_.shape['tensor']
    width = {'': model.backbone.heads * model.backbone.head_dim // ways}
    width['encoder'] = model.encoder.width // (ways if model.encoder.heads % ways == 0 else 1)
    factor = model.backbone.moe.capacity_factor if mesh_.shape['expert'] > 1 else 1.0

    def of(label: str, reported: float) -> float | None:
        if 'gmm' in label:
            return reported / factor
        if 'autoencoder' in label:
            return None
        name, _, where = label.partition(' ')
        tower = 'encoder' if 'encoder' in where else ''
        return KERNELS[name] * pairs[tower] * width[tower] if name in KERNELS else None

    return of
