"""Qwen3 of transformers, saved, loaded through `hf:` into our model: the same numbers."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from originals import VOCABULARY, dinov3, qwen3, qwen3_moe, save, torch
from weight_folders import config_of, loaded

from rf_jax.data import layout
from rf_jax.generation import kv_cache, text_sampling
from rf_jax.models.attention.masks import FIELDS

pytestmark = pytest.mark.slow

ORIGINALS = {
    'dense': lambda: qwen3(),
    'tied': lambda: qwen3(tied=True),
    'experts': lambda: qwen3_moe(),
}


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    return save(dinov3(), tmp_path_factory.mktemp('models') / 'dinov3')


@pytest.fixture(scope='module', params=ORIGINALS)
def both(request, encoder, tmp_path_factory):
    """(original, programs, params) of one kind."""
    original = ORIGINALS[request.param]()
    folder = save(original, tmp_path_factory.mktemp('models') / request.param)
    run, state = loaded(config_of(folder, encoder))
    return original, run, state.params


def tokens_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


def row_of(run, examples, capacity):
    """A row of text alone with these examples, as a batch."""
    sizes = dict.fromkeys(layout.SIZES, 0) | {'text': capacity}
    spans = [[layout.Text(tokens)] for tokens in examples]
    return layout.make_batch([spans], sizes, run.model.channels)


def logits_of(run, params, batch, dtype=None):
    def forward(model, batch):
        fields = {name: batch[name] for name in FIELDS}
        x = model.embed_text(batch['text_tokens'])
        lengths = (x.shape[1], 0, 0)
        prepared = model.attention.prepare(fields, fields)
        x, _ = model.run(x, batch['position'], prepared, lengths, None, None)
        return model.text_logits(x)

    model = run.model if dtype is None else run.model.clone(dtype=dtype)
    apply = jax.jit(lambda p, b: model.apply({'params': p}, b, method=forward))
    return np.asarray(apply(params, batch)[0])


def original_logits(original, tokens, dtype=torch.float32):
    if dtype != torch.float32:
        original = copy.deepcopy(original).to(dtype)
    with torch.no_grad():
        return original(torch.tensor(np.asarray(tokens))[None]).logits[0].float().numpy()


def distance(ours, theirs):
    """Largest difference, relative to the largest value."""
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def test_logits_of_packed_rows_equal_the_original_on_each_text(both):
    original, run, params = both
    examples = [tokens_of(40, 1), tokens_of(19, 2)]
    ours = logits_of(run, params, row_of(run, examples, 64))
    starts = np.cumsum([0, *map(len, examples)])
    for tokens, start in zip(examples, starts):
        theirs = original_logits(original, tokens)
        assert distance(ours[start : start + len(tokens)], theirs) < 2e-5


def test_long_rows(both):
    original, run, params = both
    tokens = tokens_of(4096, 3)
    ours = logits_of(run, params, row_of(run, [tokens], 4096))
    assert distance(ours, original_logits(original, tokens)) < 2e-5


def test_bfloat16(both):
    """Nearer to the original in float32 than the original in bfloat16 is."""
    original, run, params = both
    if run.config.model.backbone.ffn == 'moe':
        pytest.skip('another expert at near ties')
    examples = [tokens_of(64, seed) for seed in range(4)]
    logits = logits_of(run, params, row_of(run, examples, 256), jnp.bfloat16)
    found = []
    for tokens, ours in zip(examples, np.split(logits, 4)):
        theirs = original_logits(original, tokens)
        rounded = original_logits(original, tokens, torch.bfloat16)
        found.append([distance(ours, theirs), distance(rounded, theirs), distance(ours, rounded)])
    print('ours and theirs from float32, from each other:', *np.array(found).round(4), sep='\n')
    assert np.max(found, 0)[0] < 2e-2
    assert np.mean(found, 0)[0] < np.mean(found, 0)[1]
    assert np.max(found, 0)[2] < 3e-2


def test_gradients_of_a_block(both):
    """Of the sum of squared logits, in all parameters of the middle of the stack."""
    original, run, params = both
    tokens = tokens_of(32, 5)
    batch = jax.tree.map(jnp.asarray, row_of(run, [tokens], 32))

    def loss(params):
        fields = {name: batch[name] for name in FIELDS}
        bound = run.model.bind({'params': params})
        x = bound.embed_text(batch['text_tokens'])
        prepared = run.model.attention.prepare(fields, fields)
        x, _ = bound.run(x, batch['position'], prepared, (32, 0, 0), None, None)
        return jnp.mean(bound.text_logits(x) ** 2)

    ours = jax.device_get(jax.jit(jax.grad(loss))(params))['backbone']['layers']
    original.zero_grad()
    (original(torch.tensor(tokens)[None]).logits ** 2).mean().backward()
    block = original.model.layers[1]
    attention = ours['attention']
    pairs = [
        (attention['query']['kernel'][1].T, block.self_attn.q_proj.weight),
        (attention['key']['kernel'][1].T, block.self_attn.k_proj.weight),
        (attention['value']['kernel'][1].T, block.self_attn.v_proj.weight),
        (attention['query_norm']['scale'][1], block.self_attn.q_norm.weight),
        (attention['key_norm']['scale'][1], block.self_attn.k_norm.weight),
        (attention['norm']['scale'][1], block.input_layernorm.weight),
        (ours['output']['kernel'][1].T, block.self_attn.o_proj.weight),
        (ours['ffn_norm']['scale'][1], block.post_attention_layernorm.weight),
    ]
    group = ours['understanding']
    if 'router' in group:
        pairs.append((group['router'][1].T, block.mlp.gate.weight))
        pairs.append((group['down'][1].swapaxes(1, 2), block.mlp.experts.down_proj))
        both_ = np.concatenate([group['gate'][1], group['up'][1]], -1).swapaxes(1, 2)
        pairs.append((both_, block.mlp.experts.gate_up_proj))
    else:
        pairs += [
            (group['ffn'][name]['kernel'][1].T, getattr(block.mlp, f'{name}_proj').weight)
            for name in ('gate', 'up', 'down')
        ]
    for mine, theirs in pairs:
        assert distance(np.asarray(mine), theirs.grad.numpy()) < 1e-4


def test_greedy_decoding_gives_the_tokens_of_generate(both):
    """64 tokens with our cache; the head is scaled so that no two logits are nearly equal."""
    original, run, params = both
    prompt, count = tokens_of(9, 6), 64
    with torch.no_grad():
        original.lm_head.weight = torch.nn.Parameter(original.lm_head.weight * 10)
    params = {**params, 'text_head': {'kernel': params['text_head']['kernel'] * 10}}
    least = 2 if original.config.tie_word_embeddings else 8  # a tied head likes the last token
    original.config.tie_word_embeddings = False  # as torch has untied them above
    ids = torch.tensor(prompt)[None]
    wanted = original.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None,
                               attention_mask=torch.ones_like(ids))[0, 9:].tolist()  # fmt: skip
    batch = row_of(run, [[*prompt, *[0] * count]], 9 + count)
    model, vocabulary = run.model, VOCABULARY

    def generate(params, batch):
        x = model.bind({'params': params}).embed_text(batch['text_tokens'][:, :9])
        x, cache = kv_cache.prefill(model, params, batch, x, (9, 0, 0), empty=(9, count))
        logits = model.bind({'params': params}).text_logits(x[:, -1:])[:, 0]
        start = text_sampling.Decoding(cache, logits, jnp.array([9]), jnp.array([count]))
        rule = text_sampling.Rule(jnp.zeros(1), jnp.zeros(1, jnp.int32), jnp.ones(1),
                                  jnp.zeros(1, jnp.uint32))  # fmt: skip
        fields = kv_cache.fields_between(batch, 0, 9 + count)
        forbidden = jnp.zeros((1, vocabulary), bool)
        return text_sampling.decode(model, params, fields, start, rule, forbidden, (-1,), count)[1]

    ours = jax.jit(generate)(params, jax.tree.map(jnp.asarray, batch))[:, 0].tolist()
    assert len(set(wanted)) > least, 'the text repeats itself'
    assert ours == wanted
