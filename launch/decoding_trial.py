"""How fast text and images are decoded: `python launch/decoding_trial.py [--width=512]`.

With the same weights, `Sampler.answer` and `Sampler.generate` against a loop that runs the whole
sequence anew for every token and every flow step; and answers against `generate` of Hugging Face's
transformers on a model of the same shape, where torch and transformers are installed. Rates are the
median of repeated runs, interleaved, after one that compiles.
"""

import argparse
import statistics
import time
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from rf_jax.data import captions, source_list
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation import guidance, image_sampling, inputs
from rf_jax.generation.placement import ONE_DEVICE
from rf_jax.generation.sampler import Sampler
from rf_jax.models import unified
from rf_jax.models.layers import Logits
from rf_jax.training import flow
from rf_jax.training.state import example_row

TOKENS = 64  # of an answer
LAYERS, HEADS, HEAD_DIM, PATCH = 12, 8, 64, 16
READ, SIDE = 64, 256  # pixels of images to read, to generate
QUESTION = 'what colour is the thing on the left?'


def make_sampler(width: int, side: int) -> Sampler:
    """Random weights: 12 layers of 8 heads, images of `side` pixels."""
    config = base.get_config()
    config.data.update(patch_size=PATCH, sizes=((side, 1.0),))
    config.data.capacity.update(pixels=256, representation=65, vision=64)
    config.model.backbone.update(
        layers=LAYERS, width=width, heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM
    )
    config.model.backbone.update(feedforward=3 * width, rope_sections=(16, 8, 8), remat='none')
    config.sampling.max_answer_tokens = TOKENS
    tokenizer = SentencePieceTokenizer.train(
        captions.corpus(source_list.build('emoji', 10**8)), 2048
    )
    model = unified.build(config, tokenizer.size)
    z, t = jnp.zeros((1, 4, model.flow_channels)), jnp.zeros((1, 4))
    example = example_row(model.channels)
    init = jax.jit(lambda key: model.init(key, example, example['input_group'], z, t)['params'])
    return Sampler(config, model, ONE_DEVICE.params(init(jax.random.key(0))), tokenizer)


def rates(runs: dict, times: int) -> dict[str, float]:
    """Seconds of each run: medians of `times`, in turns, after a first run that compiles."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(times + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if number:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in found.items()}


def forward(sampler: Sampler, *outputs: str):
    """The forward pass of training over whole rows, compiled: a function that gives `outputs`."""

    @jax.jit
    def run(params, batch, tokens, z, t):
        found = sampler.model.apply({'params': params}, batch, tokens, z, t)
        chosen = [found[name] for name in outputs]
        return [each.whole() if isinstance(each, Logits) else each for each in chosen]

    return partial(run, sampler.params)


def naive_answers(sampler: Sampler, run, images) -> np.ndarray:
    """Greedy answers int32 [B, length], the whole row anew for each token."""
    pairs = [(image, QUESTION) for image in images]
    channels, count = sampler.model.channels, len(images)
    length = sampler.config.sampling.max_answer_tokens
    batch, lengths = inputs.answer_rows(sampler.config, sampler.tokenizer, channels, pairs, length)
    tokens, z = np.zeros((count, 0), np.int32), np.zeros((count, 0, channels), np.float32)
    batch, found = dict(batch), []
    for number in range(length):
        (logits,) = run(batch, tokens, z, z[..., 0])
        place = lengths + number
        found.append(np.asarray(logits[np.arange(count), place - 1].argmax(-1)))
        words = batch['text_tokens'].copy()
        words[np.arange(count), np.minimum(place, words.shape[1] - 1)] = found[-1]
        batch['text_tokens'] = words
    return np.stack(found, 1)


def naive_image(sampler: Sampler, run, prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, patches) of one image, the whole row anew for each token and each flow step."""
    options, model, config = sampler.options(), sampler.model, sampler.config
    request = inputs.request(config, prompt, 0)
    rows = inputs.generation_rows(config, sampler.tokenizer, model.channels, [request])
    count, patches = (rows[guidance.ALL, True][name].shape[1] for name in ('cells', 'pixels'))
    key = jax.vmap(jax.random.key)(np.array([request.seed], np.uint32))
    inputs_ = np.full((1, count), int(model.kind.begin(model.config, 1)[0]), np.int32)
    z, t = np.zeros((1, patches, model.channels), np.float32), np.zeros((1, patches), np.float32)
    weights = options.weights()
    for number in range(count - 1):
        found = {c: run(rows[c, True], inputs_, z, t)[0] for c in weights.tokens}
        guided = guidance.combine({c: f[:, number] for c, f in found.items()}, weights.tokens)
        token = model.kind.sample(guided, number, key, options.temperature, options.top_k)
        inputs_[:, number + 1] = np.asarray(token)
    pixels = request.height * request.width
    times = np.asarray(image_sampling.times_of(config, options, pixels))
    z, branches = np.asarray(jax.random.normal(jax.random.key(1), z.shape)), weights.pixels
    for now, after in pairwise(times):
        t = np.full(z.shape[:2], now, np.float32)
        x = {branch: run(rows[branch], inputs_, z, t)[1] for branch in branches}
        guided = guidance.combine(x, branches)
        v = flow.velocity(guided, z, t, config.flow.t_eps)
        z = np.asarray(z + (after - now) * v)
    return inputs_[0, 1:], z


def peer(sampler: Sampler):
    """`generate` of a Qwen3 of the same shape: a function of the prompt's ids [B, L]."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = sampler.config.model.backbone
    config = Qwen3Config(
        vocab_size=sampler.tokenizer.size,
        hidden_size=c.width,
        intermediate_size=c.feedforward,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
    )
    model = Qwen3ForCausalLM(config).eval()
    settings = {'do_sample': False, 'min_new_tokens': TOKENS, 'max_new_tokens': TOKENS}

    def run(ids):
        with torch.inference_mode():
            return model.generate(torch.tensor(ids), **settings)

    return run


def compare_text(sampler: Sampler, times: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, READ, READ, 3), np.uint8)
    run = forward(sampler, 'text_logits')
    naive = [sampler.tokenizer.decode(row) for row in naive_answers(sampler, run, images[:1])]
    assert naive == sampler.answer(images[:1], QUESTION)
    try:
        other = peer(sampler)
    except ImportError:
        other = None
    length = (READ // PATCH) ** 2 // 4 + 12  # vision tokens and the question
    for count in (1, 4, 16, 32):
        runs = {'ours': partial(sampler.answer, images[:count], QUESTION)}
        if count == 1:
            runs['naive'] = partial(naive_answers, sampler, run, images[:1])
        if other:
            ids = np.random.default_rng(1).integers(10, 300, (count, length))
            runs['transformers'] = partial(other, ids)
        show(f'text, {count} requests', rates(runs, times), count * TOKENS, 'tokens/s')


def compare_images(sampler: Sampler, times: int) -> None:
    run = forward(sampler, 'representation_logits', 'x')
    tokens, _ = naive_image(sampler, run, 'red apple')
    assert (tokens == sampler.generate('red apple')[0].tokens.ravel()).all()
    runs = {
        'ours': partial(sampler.generate, 'red apple'),
        'naive': partial(naive_image, sampler, run, 'red apple'),
    }
    show('image of 256 pixels', rates(runs, times), 1, 'images/s')


def show(what: str, seconds: dict[str, float], amount: int, unit: str) -> None:
    found = [f'{name} {amount / s:.4g} {unit}' for name, s in seconds.items()]
    ratios = [f'{s / seconds["ours"]:.2f} x {n}' for n, s in seconds.items() if n != 'ours']
    compared = f'; ours is {", ".join(ratios)}' if ratios else ''
    print(f'{what}: {", ".join(found)}{compared}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--times', type=int, default=5)
    given = parser.parse_args()
    compare_text(make_sampler(given.width, READ), given.times)
    compare_images(make_sampler(given.width, SIDE), given.times)


if __name__ == '__main__':
    main()
