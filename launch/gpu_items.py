"""One item of the GPU trial: `python launch/gpu_items.py 'train 0.6B' [--tiny]`.

Prints one JSON line per result, with the COLUMNS of gpu_trial.py as keys. Items:
machine · train SIZE [tokens=N per row] [attention=implementation] · sample SIZE ·
attention IMPLEMENTATION (rows with images) · packed KERNEL of gpu_measure.py (rows of text).
"""

import json
import sys
from functools import partial

import jax
import numpy as np
from gpu_measure import (
    counted_memory,
    gigabytes,
    implementation,
    packed,
    report,
    seconds,
    share,
    summary,
)

from configs import paper
from rf_jax.data import layout, spans, typical_row
from rf_jax.generation import captioning, image_sampling
from rf_jax.models import flops, unified
from rf_jax.runtime import mesh
from rf_jax.training import jitted

ROW = 8192  # tokens per row in training
ROWS = {'0.3B': 4, '0.6B': 4, '1.7B': 2}  # rows per step
ROOM = 0.9  # share of the card's memory that state and gradients may use
ANSWER = 128  # tokens per caption
BATCHES = (1, 8)  # images generated together


def machine(tiny: bool) -> None:
    device = jax.devices()[0]
    backend = ' '.join(device.client.platform_version.split())
    limit = gigabytes((device.memory_stats() or {}).get('bytes_limit')) or 'memory unknown'
    about = f'{device.device_kind}, {limit}, jax {jax.__version__}, jaxlib {jax.lib.__version__}'
    about += f', {backend}' + (', **tiny shapes: not a benchmark**' if tiny else '')
    print(json.dumps({'card': device.device_kind, 'about': about}), flush=True)


def config_of(size: str, tiny: bool, tokens: int = ROW):
    """The joint stage of `configs/paper.py` with rows of `tokens`, on one device."""
    config = paper.get_config(f'joint/{size}')
    config.offload = ()
    tokens = min(tokens, 1024) if tiny else tokens
    capacity = paper.get_config('joint/30B-A3B').data.capacity  # for rows of 32,768
    config.data.capacity.update({name: n * tokens // 32_768 for name, n in capacity.items()})
    config.data.capacity.pixels -= config.data.capacity.pixels % 4  # whole groups
    config.data.batch_size = ROWS[size] * ROW // tokens or 1
    if tiny:
        config.data.update(batch_size=1, sizes=((32, 1.0),), max_text_tokens=32)
        config.tokenizer.vocab_size, config.sampling.steps = 512, 2
        model = config.model
        for tower in (model.backbone, model.encoder):
            tower.update(layers=2, width=64, heads=2, feedforward=128)
        model.backbone.update(kv_heads=1, head_dim=32)
        model.backbone.rope_sections, model.representation.alignment_layer = (8, 4, 4), 1
        model.representation.codebook_size = 64
    return config


def built_of(config):
    """(programs, label of the layers left out so that the state fits into the card's memory)."""
    limit = (jax.devices()[0].memory_stats() or {}).get('bytes_limit')
    all_layers = config.model.backbone.layers
    while True:
        devices = mesh.make_mesh(config.mesh, jax.devices()[:1])
        built = jitted.build(config, config.tokenizer.vocab_size, devices)
        needed = jitted.nbytes_per_device(built.abstract)
        needed += jitted.nbytes_per_device(built.abstract.params)  # gradients
        layers = config.model.backbone.layers
        if limit is None or needed < ROOM * limit or layers == 1:
            return built, '' if layers == all_layers else f', {layers} of {all_layers} layers'
        config.model.backbone.layers = layers // 2
        config.model.representation.alignment_layer = max(1, layers // 6)


def batch_of(built, row) -> dict[str, jax.Array]:
    """A batch that repeats the row, with noise for images and random tokens."""
    rng, batch = np.random.default_rng(0), {}
    for name, shape in built.batch().items():
        array = np.broadcast_to(row[name], shape.shape)
        if name == 'pixels':
            array = rng.integers(0, 256, shape.shape)
        elif name == 'text_tokens':
            array = rng.integers(8, built.config.tokenizer.vocab_size, shape.shape)
        batch[name] = jax.device_put(array.astype(shape.dtype), shape.sharding)
    return batch


def train(tiny: bool, size: str, tokens: str = str(ROW), attention: str = 'auto') -> None:
    config = config_of(size, tiny, int(tokens))
    config.model.attention.implementation = attention
    built, reduced = built_of(config)
    row = typical_row.row(config)
    batch, state = batch_of(built, row), built.initialise()
    compiled = built.train_step.lower(state, batch).compile()

    def step():
        nonlocal state
        state, values = compiled(state, batch)
        return values

    took = seconds(step, 2 if tiny else 10)
    peak = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    pairs = flops.visible_pairs(config, row)
    total = flops.train_step(config, config.tokenizer.vocab_size, pairs)
    length = row['segment'].shape[0]
    report(
        f'train {size}{reduced}',
        f'{config.data.batch_size} rows of {length:,}, attention {attention}, '
        f'remat {config.model.backbone.remat}',
        time=f'{took * 1e3:,.1f} ms per step',
        rate=f'{config.data.batch_size * length / took:,.0f} tokens/s',
        **{'share of peak': share(total, took)},
        **{'peak memory, measured': gigabytes(peak)},
        **counted_memory(compiled),
    )


def sample(tiny: bool, size: str) -> None:
    config = config_of(size, tiny)
    built, reduced = built_of(config)
    params, pool = built.initialise().params, spans.pool_of(config)
    model = unified.build(config, config.tokenizer.vocab_size)
    side = config.data.sizes[0][0] // config.data.patch_size
    what = f'sample {size}{reduced}'
    capacity = {'text': 64, 'vision': 0, 'representation': side**2 // pool**2 + 1,
                'pixels': side**2, 'vision_images': 0, 'pixel_images': 1}  # fmt: skip

    def place(count: int, text: bool, code: bool):
        drawn = spans.generation_spans(
            [layout.Text([9] * 24)],
            (side, side),
            None,
            pool,
            drop_text=not text,
            drop_representation=not code,
            keep_positions=config.data.dropout_keeps_positions,
        )
        return layout.make_batch([[drawn]] * count, capacity, model.channels)

    for count in BATCHES[:1] if tiny else BATCHES:
        rows = {(c, r): place(count, c, r) for c in (True, False) for r in (True, False)}
        keys = jax.random.split(jax.random.key(0), count)
        options = image_sampling.options(config)
        generate = partial(image_sampling.generate, model, config, options)
        arguments = params, rows, keys, options.weights()
        compiled = jax.jit(generate).lower(*arguments).compile()
        took = seconds(lambda: compiled(*arguments), 2) / count  # noqa: B023
        settings = f'images of {side * config.data.patch_size} px, {count} together'
        report(what, settings, time=f'{took:.3f} s per image', **counted_memory(compiled))

    count, length = (1, 4) if tiny else (8, ANSWER)
    pixels = np.zeros((side**2, model.channels), np.uint8)
    rows = [[[layout.Vision(side, side, pixels), layout.Text([9] * (8 + length))]]] * count
    capacity = dict(zip(layout.SIZES, layout.size(rows[0][0]).tolist()))
    answer = partial(captioning.answer, model, length=length, ends=(-1,))
    arguments = (
        params,
        layout.make_batch(rows, capacity, model.channels),
        np.full(count, 8, np.int32),
    )
    compiled = jax.jit(answer).lower(*arguments).compile()
    took = seconds(lambda: compiled(*arguments), 2)
    report(
        what,
        f'{count} captions of {length} tokens together',
        time=f'{took:.3f} s',
        rate=f'{count * length / took:,.0f} text tokens/s',
        **counted_memory(compiled),
    )


def main(item: str, tiny: bool) -> None:
    kind, _, rest = item.partition(' ')
    if kind == 'machine':
        machine(tiny)
    elif kind == 'train':
        size, *options = rest.split()
        train(tiny, size, **dict(option.split('=') for option in options))
    elif kind == 'attention':
        implementation(tiny, rest, config_of)
    else:
        {'sample': sample, 'packed': packed}[kind](tiny, rest)


if __name__ == '__main__':
    if '--tiny' in sys.argv[2:]:
        jax.config.update('jax_disable_most_optimizations', True)  # compiles in half the time
    try:
        main(sys.argv[1], '--tiny' in sys.argv[2:])
    except Exception as error:  # reported as a line of the table
        report(sys.argv[1], '', failed=summary(error))
        sys.exit(1)
