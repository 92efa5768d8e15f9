"""Which tokens depend on which, by gradients through the whole model, over random layouts.

`influence[q, k]` is the size of the gradient of output token q with respect to input token k: text
and representation embeddings, vision patches, noisy patches. The masks that the layout makes are
exact, so what must not be seen has gradient zero to the last bit.
"""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_rows import CAPACITY, CHANNELS, filled, random_row, sees, tokens_of

from configs import base
from rf_jax.data import layout
from rf_jax.data.layout import Pixels, Representation, Text, Vision
from rf_jax.data.spans import generation_spans
from rf_jax.models import unified
from rf_jax.models.moe.experts import GROUPS
from rf_jax.training.state import example_row

pytestmark = pytest.mark.slow

VOCABULARY, CODES = 32, 16
SEEDS = (0, 1, 2, 3, 4, 5)
OUTPUTS = ('text', 'representation', 'pixels')


def tiny(split: str):
    config = base.get_config()
    config.data.patch_size = 2  # CHANNELS = 12
    config.model.backbone.update(
        layers=2, width=16, heads=2, kv_heads=1, head_dim=16, feedforward=16, split=split
    )
    config.model.backbone.rope_sections = (4, 2, 2)
    config.model.encoder.update(layers=2, unroll=1, width=16, heads=2, feedforward=16, registers=1)
    config.model.representation.update(codebook_size=CODES, position_grid=4)
    config.model.denoiser.time_embed_dim = 8
    return config


@cache
def model_and_params(split: str = 'ffn'):
    """All parameters away from their initial values, since the pixel head starts at zero."""
    model = unified.build(tiny(split), VOCABULARY)
    batch, z = example_row(CHANNELS), jnp.zeros((1, 4, CHANNELS))
    inputs = batch, batch['input_group'], z, z[..., 0]
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)['params']
    rng = np.random.default_rng(0)

    def draw(path, shape):
        is_scale = jax.tree_util.keystr(path).endswith("scale']")
        return (0.3 * rng.normal(size=shape.shape) + is_scale).astype(np.float32)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def forward(split, params, row, codes, z, t):
    """Outputs by stream, [n, ...] of one row, without the leading B."""
    batch = {name: value[None] for name, value in row.items()}
    model, _ = model_and_params(split)
    out = model.apply({'params': params}, batch, codes[None], z[None], t[None])
    found = out['text_logits'].whole(), out['representation_logits'].whole(), out['x']
    return {stream: output[0] for stream, output in zip(OUTPUTS, found)}


@cache
def jacobian_of(split: str):
    """Compiled once: every row has the same capacities."""
    embeddings = {'text_embed': 'text', 'representation_embed': 'representation'}

    def projected(inputs, params, row, codes, t, directions):
        def add(call, args, kwargs, context):
            stream = embeddings.get(context.module.name)
            is_call = stream is not None and context.method_name == '__call__'
            out = call(*args, **kwargs)
            return out + inputs[stream][None] if is_call else out

        row = row | {'vision_pixels': inputs['vision']}  # as floats, so that gradients reach them
        with nn.intercept_methods(add):
            out = forward(split, params, row, codes, inputs['pixels'], t)
        return jnp.concatenate([jnp.sum(out[s] * directions[s], -1) for s in OUTPUTS])

    def influence(inputs, *rest):
        out, pull = jax.vjp(lambda inputs: projected(inputs, *rest), inputs)
        # One output at a time: jax.jacrev, which batches them, gives wrong rows on CPU (0.10.2).
        gradients = jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(out)))
        return {stream: jnp.abs(g).sum(-1) for stream, g in gradients.items()}

    return jax.jit(influence, compiler_options={'xla_backend_optimization_level': 0})


def random_inputs(row, seed):
    rng = np.random.default_rng(seed)
    codes = np.where(row['input_group'] < 0, -1, rng.integers(0, CODES, row['input_group'].shape))
    z = rng.normal(size=row['pixels'].shape).astype(np.float32)
    t = rng.random(row['pixels'].shape[0]).astype(np.float32)
    return codes, z, t


def influence(samples, split: str = 'ffn') -> np.ndarray:
    """float [L, L]; rows of vision tokens, which have no output, stay NaN."""
    row, (_, params) = filled(samples), model_and_params(split)
    codes, z, t = random_inputs(row, 0)
    rng = np.random.default_rng(1)
    directions = {'text': VOCABULARY, 'representation': CODES, 'pixels': CHANNELS}
    width = tiny(split).model.backbone.width
    inputs = {
        'text': np.zeros((CAPACITY['text'], width), np.float32),
        'vision': row['vision_pixels'].astype(np.float32),
        'representation': np.zeros((CAPACITY['representation'], width), np.float32),
        'pixels': z,
    }
    directions = {name: rng.normal(size=(n,)).astype(np.float32) for name, n in directions.items()}
    found = {k: np.asarray(v) for k, v in
             jacobian_of(split)(inputs, params, row, codes, t, directions).items()}  # fmt: skip
    assert all(np.isfinite(g).all() for g in found.values())
    # Sum over the four patches of a token.
    found['vision'] = found['vision'].reshape(len(found['text']), -1, 4).sum(-1)
    columns = np.concatenate([found[stream] for stream in layout.STREAMS], 1)
    before, vision = CAPACITY['text'], CAPACITY['vision']
    unknown = np.full((vision, columns.shape[1]), np.nan)
    return np.concatenate([columns[:before], unknown, columns[before:]])


@cache
def case(seed: int):
    samples = random_row(seed)
    return tokens_of(samples), influence(samples)


def pairs(seed: int, select):
    """Influences of the (query, key) pairs for which `select(q, k)`, over tokens with outputs."""
    tokens, found = case(seed)
    return np.array([
        found[i, j]
        for i, q in enumerate(tokens)
        for j, k in enumerate(tokens)
        if q and k and not isinstance(q.span, Vision) and select(q, k)
    ])  # fmt: skip


def is_a(token, kind) -> bool:
    return isinstance(token.span, kind)


def later(q, k) -> bool:
    return q.sample == k.sample and (k.at, k.inside) > (q.at, q.inside)


def own_representation(q, k) -> bool:
    """k is in the representation of the image of which q is a noisy patch."""
    return (q.sample == k.sample and is_a(q, Pixels) and is_a(k, Representation)
            and k.at == q.at - 1)  # fmt: skip


@pytest.mark.parametrize('seed', SEEDS)
def test_a_token_depends_on_visible_tokens_and_nothing_else(seed):
    seen = pairs(seed, lambda q, k: q == k or sees(q, k))
    unseen = pairs(seed, lambda q, k: not (q == k or sees(q, k)))
    assert len(seen) and (seen > 0).all()
    assert len(unseen) and (unseen == 0).all()


def test_the_same_with_split_attention():
    samples = random_row(SEEDS[0])
    tokens, found = tokens_of(samples), influence(samples, 'full')
    for i, q in enumerate(tokens):
        for j, k in enumerate(tokens):
            if q and k and not is_a(q, Vision):
                assert (found[i, j] > 0) == (q == k or sees(q, k))


@pytest.mark.parametrize('seed', SEEDS)
def test_text_and_representation_are_causal(seed):
    def causal(q):
        return is_a(q, Text) or is_a(q, Representation)

    assert (pairs(seed, lambda q, k: causal(q) and later(q, k)) == 0).all()
    before = pairs(
        seed, lambda q, k: causal(q) and later(k, q) and q.at == k.at and q.sample == k.sample
    )
    assert (before > 0).all()


def test_the_layouts_cover_all_cases():
    """These layouts contain the pairs that the tests below are about."""

    def total(select):
        return sum(len(pairs(seed, select)) for seed in SEEDS)

    assert total(lambda q, k: is_a(q, Text) and is_a(k, Text) and later(q, k)) > 20
    assert total(lambda q, k: is_a(q, Representation) and later(q, k)) > 20
    assert total(lambda q, k: q.sample != k.sample) > 100
    assert total(lambda q, k: own_representation(q, k) and q.span.reads_representation) > 20
    assert total(lambda q, k: own_representation(q, k) and not q.span.reads_representation) > 20
    assert total(lambda q, k: is_a(q, Pixels) and is_a(k, Text) and later(k, q)) > 20
    assert total(lambda q, k: is_a(q, Text) and is_a(k, Vision) and later(k, q)) > 10
    assert total(lambda q, k: is_a(q, Pixels) and is_a(k, Pixels) and q.at > k.at) > 20


@pytest.mark.parametrize('seed', SEEDS)
def test_examples_of_a_row_do_not_influence_each_other(seed):
    assert (pairs(seed, lambda q, k: q.sample != k.sample) == 0).all()


@pytest.mark.parametrize('seed', SEEDS)
def test_noise_stays_within_its_image(seed):
    others = pairs(seed, lambda q, k: is_a(k, Pixels) and (q.sample, q.at) != (k.sample, k.at))
    assert (others == 0).all()
    own = pairs(seed, lambda q, k: is_a(k, Pixels) and (q.sample, q.at) == (k.sample, k.at))
    assert (own > 0).all()


@pytest.mark.parametrize('seed', SEEDS)
def test_pixels_depend_on_all_of_their_representation_and_earlier_text(seed):
    read = pairs(seed, lambda q, k: own_representation(q, k) and q.span.reads_representation)
    assert (read > 0).all()
    dropped = pairs(seed, lambda q, k: own_representation(q, k) and not q.span.reads_representation)
    assert (dropped == 0).all()
    text = pairs(
        seed,
        lambda q, k: is_a(q, Pixels) and is_a(k, Text) and q.sample == k.sample and k.at < q.at,
    )
    assert (text > 0).all()


@pytest.mark.parametrize('split', ['ffn', 'full'])
def test_each_stream_goes_to_its_experts(split):
    row, (_, params) = filled(random_row(0)), model_and_params(split)
    tokens = {}

    def note(call, args, kwargs, context):
        if context.module.name in GROUPS:
            tokens[context.module.name] = args[0].shape[1]
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda *a: forward(split, params, *a), row, *random_inputs(row, 0))
    lengths = CAPACITY['text'] + CAPACITY['vision'], CAPACITY['representation'], CAPACITY['pixels']
    assert tokens == dict(zip(GROUPS, lengths))


def test_padding_influences_nothing():
    for seed in SEEDS:
        tokens, found = case(seed)
        real = [i for i, q in enumerate(tokens) if q and not is_a(q, Vision)]
        padding = [i for i, q in enumerate(tokens) if q is None]
        assert padding and (found[np.ix_(real, padding)] == 0).all()


@pytest.mark.parametrize('drop_text', [False, True])
@pytest.mark.parametrize('drop_representation', [False, True])
@pytest.mark.parametrize('keep_positions', [False, True])
def test_a_dropped_condition_has_no_influence_on_the_pixels(
    drop_text, drop_representation, keep_positions
):
    spans = generation_spans(
        [Text([5, 6, 7])], (4, 4), np.zeros((16, CHANNELS), np.uint8), 2,
        drop_text=drop_text, drop_representation=drop_representation,
        keep_positions=keep_positions,
    )  # fmt: skip
    samples = [[Text([9, 9])], spans]
    tokens, found = tokens_of(samples), influence(samples)

    def places(kind):
        return [i for i, k in enumerate(tokens) if k and k.sample == 1 and is_a(k, kind)]

    text, representation, pixels = places(Text), places(Representation), places(Pixels)
    assert len(pixels) == 16 and len(representation) == 5
    assert len(text) == (0 if drop_text else 3)
    to_pixels = found[np.ix_(pixels, representation)]
    assert (to_pixels == 0).all() if drop_representation else (to_pixels > 0).all()
    assert (found[np.ix_(pixels, text)] > 0).all()
    assert (found[np.ix_(representation, text)] > 0).all()
    # Only the remaining tokens may matter: everything else in the row is zero.
    left = {*pixels, *text, *(() if drop_representation else representation)}
    others = [i for i in range(len(tokens)) if i not in left]
    assert (found[np.ix_(pixels, others)] == 0).all()


@cache
def jit_forward():
    return jax.jit(lambda *inputs: forward('ffn', *inputs))


@pytest.mark.parametrize('stream', ['text', 'representation', 'vision', 'pixels'])
def test_changing_an_input_leaves_unrelated_outputs_bit_identical(stream):
    """Changes token ids, codes and pixels themselves, not their embeddings."""
    samples = [
        [Vision(4, 4, np.full((16, CHANNELS), 9, np.uint8)), Text([5, 6, 7])],
        [Text([8, 9]), Representation(4, 4), Pixels(4, 4), Text([10, 11]),
         Representation(2, 2, 1), Pixels(2, 2, None, 1)],
        [Text([12, 13])],
    ]  # fmt: skip
    row, tokens = filled(samples), tokens_of(samples)
    codes, z, t = random_inputs(row, 3)
    run, params = jit_forward(), model_and_params('ffn')[1]

    def outputs(row, codes, z):
        out = run(params, row, codes, z, t)
        return [*out['text'], *[None] * CAPACITY['vision'], *out['representation'], *out['pixels']]

    first = outputs(row, codes, z)
    starts = np.cumsum([0, *(CAPACITY[name] for name in layout.STREAMS)])
    start = starts[layout.STREAMS.index(stream)]
    for place in range(CAPACITY[stream]):
        changed = tokens[start + place]
        if changed is None:
            continue
        new_row, new_codes, new_z = dict(row), codes.copy(), z.copy()
        if stream == 'text':
            new_row['text_tokens'] = row['text_tokens'].copy()
            new_row['text_tokens'][place] += 1
        elif stream == 'vision':
            new_row['vision_pixels'] = row['vision_pixels'].copy()
            new_row['vision_pixels'][4 * place : 4 * place + 4] += 50
        elif stream == 'representation':
            if codes[place] < 0:
                continue
            new_codes[place] = (codes[place] + 1) % CODES
        else:
            new_z[place] += 1
        for q, before, after in zip(tokens, first, outputs(new_row, new_codes, new_z)):
            if q and before is not None:
                depends = q == changed or sees(q, changed)
                assert np.array_equal(before, after) != depends
