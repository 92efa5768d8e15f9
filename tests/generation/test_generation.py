"""Generation with a cache is the training forward, token by token, and random by seed alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_sampler import WORDS, make_sampler

from configs import base
from rf_jax.generation import captioning, guidance, image_sampling, inputs, kv_cache, token_sampling
from rf_jax.generation.guidance import ALL, NONE
from rf_jax.generation.inputs import Request
from rf_jax.models.representation import forcing

pytestmark = pytest.mark.slow

BRANCHES = [(ALL, True), (ALL, False), (NONE, True), (NONE, False)]
REQUESTS = [
    Request('a red heart', 64, 64, 11),
    Request('grinning face with big eyes and two small dogs', 32, 64, 12),
    Request('flag', 64, 32, 13),
]


@pytest.fixture(scope='module')
def sampler():
    return make_sampler('ffn')


def keys_of(requests):
    return jax.vmap(jax.random.key)(np.array([r.seed for r in requests], np.uint32))


def counts_of(requests):
    """Representation tokens of each image."""
    return [r.height * r.width // 32**2 for r in requests]


def rows_of(sampler, requests):
    channels = sampler.model.channels
    return inputs.generation_rows(sampler.config, sampler.tokenizer, channels, requests)


def with_begin(codes):
    """Codes as the representation stream's inputs: begin, then the codes."""
    return jnp.concatenate([jnp.full((codes.shape[0], 1), -1, jnp.int32), codes], 1)


@pytest.mark.parametrize('split', ['ffn', 'full'])
def test_cached_generation_equals_the_full_forward(sampler, split):
    if split != 'ffn':
        sampler = make_sampler(split)
    model, params, rows = sampler.model, sampler.params, rows_of(sampler, REQUESTS)
    options = image_sampling.Options(temperature=0.0, guidance_representation=2.0)
    contexts, weights = (ALL, NONE), options.weights()
    batch = image_sampling._stack([rows[context, True] for context in contexts])
    codes, cache = jax.jit(
        lambda params, keys: token_sampling.sample(model, options, params, batch, weights, keys)
    )(params, keys_of(REQUESTS))
    caches = dict(zip(contexts, image_sampling._split(cache, 2)))
    assert codes.shape == (3, 4) and codes.dtype == jnp.int32
    assert len(np.unique(codes)) > 2, 'the codes should not be all the same'

    keys = jax.random.split(jax.random.key(5), 2)
    z = jax.random.normal(keys[0], (3, 16, model.channels))
    t = jnp.broadcast_to(jax.random.uniform(keys[1], (3, 1)), (3, 16))
    full = jax.jit(
        lambda params, row: model.apply({'params': params}, row, with_begin(codes), z, t)
    )

    @jax.jit
    def after(params, row, cache):
        x = model.bind({'params': params}).embed_patches(z, t, row['pixel_cells'])
        x = kv_cache.after(model, params, row, cache, x, (0, 0, 16))
        return model.bind({'params': params}).predict(x)

    outputs = {branch: full(params, rows[branch]) for branch in BRANCHES}
    real = np.asarray(rows[ALL, True]['pixel_weight']) > 0
    for branch in BRANCHES:
        found, right = after(params, rows[branch], caches[branch[0]]), outputs[branch]['x']
        assert float(jnp.abs(right[real]).max()) > 0.1
        np.testing.assert_allclose(found[real], right[real], atol=1e-5, err_msg=str(branch))
    for a in BRANCHES:  # a branch that saw the same as another would test nothing
        for b in BRANCHES[: BRANCHES.index(a)]:
            apart = jnp.abs(outputs[a]['x'] - outputs[b]['x'])
            assert float(apart.max(-1)[real].min()) > 1e-4, (a, b)

    kept, dropped = (
        outputs[context, True]['representation_logits'].whole() for context in contexts
    )
    guided = jnp.argmax(dropped + 2.0 * (kept - dropped), -1)
    alone = jnp.argmax(kept, -1)
    for row, count in enumerate(counts_of(REQUESTS)):
        np.testing.assert_array_equal(codes[row, :count], guided[row, :count])
    assert (guided != alone).any(), 'guidance should matter here'


def test_codes_follow_the_models_distribution(sampler):
    """Temperature and top-k: frequencies of the first code over many keys."""
    model, params, rows = sampler.model, sampler.params, rows_of(sampler, REQUESTS[:1])
    count, temperature, k = 2000, 1.5, 5
    options = image_sampling.Options(top_k=k, temperature=temperature, guidance_representation=2.0)
    many = {b: jax.tree.map(lambda a: np.repeat(a, count, 0), row) for b, row in rows.items()}
    batch = image_sampling._stack([many[context, True] for context in (ALL, NONE)])
    batch['cells'] = batch['cells'][:, :2]  # one code is enough
    keys = jax.vmap(jax.random.key)(np.arange(count))
    codes, _ = jax.jit(
        lambda params: token_sampling.sample(model, options, params, batch, options.weights(), keys)
    )(params)
    assert codes.shape == (count, 1)
    empty = jnp.full((1, 4), -1, jnp.int32)
    z, t = jnp.zeros((1, 16, model.channels)), jnp.zeros((1, 16))
    kept, dropped = (
        model.apply({'params': params}, rows[c, True], with_begin(empty), z, t)[
            'representation_logits'
        ].whole()[0, 0]
        for c in (ALL, NONE)
    )
    logits = np.asarray(dropped + 2.0 * (kept - dropped)) / temperature
    logits[np.argsort(logits)[:-k]] = -np.inf
    right = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found = np.bincount(codes[:, 0], minlength=32) / count
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(right))
    np.testing.assert_allclose(found, right, atol=4 * 0.5 / count**0.5)
    assert right.max() < 0.95, 'the distribution should not be a single code'


@pytest.fixture(scope='module')
def together(sampler):
    return sampler._generate(REQUESTS, sampler.options(method='heun'))


def test_a_batch_gives_what_its_prompts_give_one_by_one(sampler, together):
    patches, codes = together
    for row, (request, count) in enumerate(zip(REQUESTS, counts_of(REQUESTS))):
        own_patches, own_codes = sampler._generate([request], sampler.options(method='heun'))
        np.testing.assert_array_equal(own_codes[0, :count], codes[row, :count])
        np.testing.assert_allclose(
            own_patches[0, : 4 * count], patches[row, : 4 * count], atol=1e-4, rtol=1e-4
        )


def test_randomness_is_the_seeds(sampler, together):
    options = sampler.options(method='heun')
    patches, codes = sampler._generate(REQUESTS, options)
    np.testing.assert_array_equal(patches, together[0])
    np.testing.assert_array_equal(codes, together[1])
    other = [Request(r.prompt, r.height, r.width, r.seed + 100) for r in REQUESTS[:2]]
    patches, codes = sampler._generate([*other, REQUESTS[2]], options)
    assert (codes[:2] != together[1][:2]).any()
    assert (np.abs(patches[:2] - together[0][:2]).max((1, 2)) > 1e-2).all()
    np.testing.assert_allclose(patches[2, :8], together[0][2, :8], atol=1e-5)  # a new neighbour


def test_the_randomness_of_a_request_depends_on_seed_prompt_and_number(sampler):
    def request(*given):
        return inputs.request(sampler.config, *given)

    first = request('a  flag ', 3)
    assert first == request('a flag', 3) and (first.height, first.width) == (64, 64)
    others = [request('a flag', 4), request('a flag', 3, 1), request('two flags', 3)]
    assert len({first.seed, *(r.seed for r in others)}) == 4


# Captioning


@pytest.fixture(scope='module')
def questions():
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (32, 64), (64, 40)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return list(zip(images, ['', 'two small dogs', 'flag']))


@pytest.fixture(scope='module')
def answered(sampler, questions):
    """(tokens [3, 4], batch, heads) of greedy answers."""
    seen = {}
    sampler._answer(questions)
    key = 'answer', sampler.config.sampling.max_answer_tokens
    program = sampler._programs[key]

    def spy(params, batch, heads):
        seen.update(batch=batch, heads=heads)
        return program(params, batch, heads)

    sampler._programs[key] = spy
    tokens = sampler._answer(questions)
    sampler._programs[key] = program
    return tokens, seen['batch'], seen['heads']


def test_greedy_answers_equal_the_full_forward(sampler, answered):
    tokens, batch, heads = answered
    model, batch = sampler.model, dict(batch)
    assert len(set(heads.tolist())) == 3, 'questions of different lengths'
    codes, t = np.zeros((3, 0), np.int32), np.zeros((3, 0), np.float32)
    z = np.zeros((3, 0, model.channels), np.float32)

    @jax.jit
    def full(params, batch):
        return model.apply({'params': params}, batch, codes, z, t)['text_logits'].whole()

    text, rows = np.array(batch['text_tokens']), np.arange(3)
    ended = np.zeros(3, bool)
    for i in range(tokens.shape[1]):
        logits = np.asarray(full(sampler.params, batch | {'text_tokens': text}))
        best = logits[rows, heads + i - 1].argmax(-1)
        expected = np.where(ended, sampler.tokenizer.eos, best)
        np.testing.assert_array_equal(tokens[:, i], expected, err_msg=f'token {i}')
        text[rows, heads + i] = tokens[:, i]
        ended |= expected == sampler.tokenizer.eos
    assert len(np.unique(tokens)) > 3, 'the answers should not be all the same'


def test_a_longer_limit_continues_the_same_answers(sampler, questions, answered):
    short, *_ = answered
    sampler.config.sampling.max_answer_tokens += 3
    longer = sampler._answer(questions)
    sampler.config.sampling.max_answer_tokens -= 3
    assert longer.shape == (3, short.shape[1] + 3)
    np.testing.assert_array_equal(longer[:, : short.shape[1]], short)


def test_answers_end(sampler, answered):
    tokens, batch, heads = answered
    # Pretend that the second token of the first answer and the third of another end answers.
    ends = int(tokens[0, 1]), int(tokens[2, 2])
    found = jax.jit(
        lambda params, batch, heads: captioning.answer(sampler.model, params, batch, heads, 4, ends)
    )(sampler.params, batch, heads)
    stops = []
    for row, right in zip(np.asarray(found), tokens):
        stop = next((i for i, token in enumerate(right) if token in ends), 4)
        stops += right[stop : stop + 1].tolist()
        np.testing.assert_array_equal(row[: stop + 1], right[: stop + 1])
        assert (row[stop + 1 :] == ends[0]).all()
    assert set(stops) == set(ends), 'the test needs answers that end in either way'


def test_truncated_questions_are_logged(sampler, questions, caplog):
    long = ' '.join(WORDS * 4)
    with caplog.at_level('WARNING', logger='absl'):
        sampler.answer(questions[0][0], long)
        sampler.answer([questions[0][0]] * 5, [long] + ['what?'] * 4)  # one call of 32 rows
    said = '1 of {} question(s) were truncated to 20 tokens (data.max_text_tokens=40)'
    assert [said.format(n) in caplog.text for n in (1, 2)] == [True, True]


def test_answers_do_not_depend_on_the_batch(sampler, questions, answered):
    tokens, _, heads = answered
    np.testing.assert_array_equal(sampler._answer(questions[1:2])[0], tokens[1])
    assert heads[1] > heads[0]
    assert sampler.caption([questions[0][0]]) == [sampler.tokenizer.decode(tokens[0])]


def test_truncated_prompts_are_counted_once_whatever_the_rows_of_a_call(sampler, caplog):
    prompts = [' '.join(WORDS * 9), *WORDS[:4]]  # a call of 32 rows is filled up by the first
    with caplog.at_level('WARNING', logger='absl'):
        sampler.generate(prompts * 2, seed=0, steps=1)
    (said,) = [r.getMessage() for r in caplog.records if 'truncated' in r.getMessage()]
    assert said.startswith(
        '1 of 5 prompt(s) were truncated to 38 tokens (data.max_text_tokens=40): '
    )


# Guidance


@pytest.mark.parametrize(
    'scale, text', [(3.0, 0.0), (3.0, 5.0), (1.0, 0.0), (1.0, 2.0), (0.0, 0.0)]
)
def test_pixel_weights_sum_to_one(scale, text):
    assert sum(guidance.pixel_weights(scale, text).values()) == pytest.approx(1.0)
    assert sum(guidance.token_weights(scale).values()) == pytest.approx(1.0)


def test_guidance_is_the_formula():
    rng = np.random.default_rng(0)
    v = {branch: rng.normal(size=3) for branch in BRANCHES}
    found = guidance.combine(v, guidance.pixel_weights(3.0, 5.0))
    none, image, both = v[NONE, False], v[NONE, True], v[ALL, True]
    np.testing.assert_allclose(found, none + 3 * (image - none) + 5 * (both - image))
    found = guidance.combine(v, guidance.pixel_weights(3.0))
    np.testing.assert_allclose(found, none + 3 * (both - none))


def test_branches_without_weight_are_not_run():
    assert set(guidance.pixel_weights(3.0)) == {(ALL, True), (NONE, False)}
    assert set(guidance.pixel_weights(3.0, 3.0)) == {(ALL, True), (NONE, False)}
    assert guidance.pixel_weights(1.0) == {(ALL, True): 1.0}
    assert guidance.token_weights(1.0) == {ALL: 1.0}
    for scale, contexts in ((1, (ALL,)), (3, (ALL, NONE))):
        options = image_sampling.Options(guidance_representation=1, guidance_pixels=scale)
        assert options.weights().contexts() == contexts


def test_top_k_keeps_the_greatest():
    logits = jnp.array([[0.1, 3.0, -1.0, 2.0], [5.0, 4.0, 3.0, 2.0]])
    np.testing.assert_array_equal(
        np.isfinite(forcing.keep_top_k(logits, 2)),
        [[False, True, False, True], [True, True, False, False]],
    )
    np.testing.assert_array_equal(forcing.keep_top_k(logits, 1).max(-1), [3.0, 5.0])
    for k in (0, 4, 9):
        np.testing.assert_array_equal(forcing.keep_top_k(logits, k), logits)


class Constant:
    """In place of the model: predicts one image a branch, `row['answer']`."""

    channels = flow_channels = 3

    def __init__(self, monkeypatch):
        self.calls = collections.Counter()
        monkeypatch.setattr(kv_cache, 'after', self.after)

    def bind(self, variables):
        return self

    def embed_patches(self, z, t, cells):
        return z

    def predict(self, x):
        return x

    def after(self, model, params, row, cache, x, groups):
        self.calls['after'] += 1
        return jnp.broadcast_to(row['answer'][:, None, None], x.shape)


@pytest.mark.parametrize('method', ['euler', 'heun'])
@pytest.mark.parametrize(
    'changes, right',
    [
        ({'guidance_pixels': 1.0}, 1.0),
        ({'guidance_pixels': 3.0}, 3 * 1.0 - 2 * 0.25),
        ({'guidance_pixels': 3.0, 'guidance_text': 2.0}, 2 * 1.0 + 1 * 0.5 - 2 * 0.25),
        (
            {'guidance_pixels': 3.0, 'guidance_interval': (0.5, 1.0)},
            2.5,
        ),  # on at the end, which decides
        ({'guidance_pixels': 3.0, 'guidance_interval': (0.0, 0.5)}, 1.0),
        ({'guidance_pixels': 0.0}, 0.25),
        ({'guidance_pixels': 0.0, 'guidance_interval': (0.0, 0.5)}, 1.0),
    ],
)
def test_flow_ends_at_the_guided_image(monkeypatch, method, changes, right):
    """With a constant prediction the last step lands on it, guided only within the interval."""
    answers = dict(zip(BRANCHES, (1.0, 9.0, 0.5, 0.25)))
    rows = {
        branch: {'answer': jnp.full(2, value), 'pixel_counts': jnp.array([[4], [8]]),
                 'pixels': jnp.zeros((2, 8, 3)), 'pixel_cells': jnp.zeros((2, 8, 2), int)}
        for branch, value in answers.items()
    }  # fmt: skip
    config, none = base.get_config(), jnp.zeros((1, 2, 1, 1, 1))
    caches = dict.fromkeys((ALL, NONE), (none, none))
    options = image_sampling.Options(steps=10, method=method, **changes)
    keys = jax.vmap(jax.random.key)(np.arange(2))
    found = image_sampling.generate_latents(
        *(Constant(monkeypatch), config, options, None, rows, caches, keys),
        options.weights().pixels,
    )
    np.testing.assert_allclose(found, np.full((2, 8, 3), right), atol=1e-5)
