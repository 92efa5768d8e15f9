"""What each token of a conversation depends on, by gradients, against the rules in words."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shrink import shrink
from tiny_sampler import noisy_params

from configs import base
from rf_jax.data import conversation, layout
from rf_jax.data.conversation import Dropped
from rf_jax.data.messages import assistant, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.models import unified

pytestmark = pytest.mark.slow

CAPACITY = {'text': 90, 'vision': 40, 'representation': 40, 'pixels': 64, 'vision_images': 10,
            'pixel_images': 6}  # fmt: skip
GRIDS = [(2, 4), (4, 2), (2, 2), (4, 4)]
WORDS = ['a', 'red', 'dog', 'is', 'here', 'and', 'there']


@pytest.fixture(scope='module')
def built():
    """(model, params, tokenizer): every text token and every code of a row can be different."""
    config = shrink(base.get_config())
    config.model.representation.codebook_size = 64
    tokenizer = SentencePieceTokenizer.train(WORDS * 3, 384)
    model = unified.build(config, tokenizer.size)
    return model, noisy_params(model, 0.3), tokenizer


def random_conversation(rng, images):
    """Up to six turns and four images, of the user and of the assistant."""
    found, number = [], 0
    for _ in range(int(rng.integers(1, 4))):
        for make in (user, assistant):
            parts = [' '.join(rng.choice(WORDS, 2))]
            if number < images and rng.random() < 0.6:
                parts.insert(int(rng.integers(2)), number)
                number += 1
            found.append(make(*parts))
    return found


def random_dropped(rng, messages):
    count = sum(len(m.images) for m in messages if m.role == 'assistant')
    if not count:
        return conversation.NOTHING
    return Dropped(*(rng.random(3) < 0.3).tolist(), kept=int(rng.integers(count)))


def spans_of(messages, tokenizer, dropped):
    pieces = conversation.Template(tokenizer, 40, Counter()).pieces(messages)
    grids = [GRIDS[i % len(GRIDS)] for i in range(8)]
    return conversation.to_spans(pieces, grids.__getitem__, lambda i, pool: None, 2, dropped)


def in_words(rows_spans, blind):
    """(kind, sample, time, image) of each token by stream: time counts spans and, in text and
    representations, tokens. `blind`: samples whose pixels do not see their representation.
    """
    found = {stream: [] for stream in layout.STREAMS}
    for sample, spans in enumerate(rows_spans):
        for time, span in enumerate(spans):
            if isinstance(span, layout.Text):
                found['text'] += [(sample, (time, i), None) for i in range(len(span.tokens))]
                continue
            patches = span.height * span.width
            if isinstance(span, layout.Vision):
                found['vision'] += [(sample, (time, 0), span.image)] * (patches // 4)
            elif isinstance(span, layout.Representation):
                found['representation'] += [
                    (sample, (time, i), span.image) for i in range(patches // 4 + 1)
                ]
            else:
                found['pixels'] += [(sample, (time, 0), span.image)] * patches
    return found


def depends(query, key, blind) -> bool:
    """Whether the token `query` (kind, sample, time, image) depends on `key`, in words."""
    (kind, sample, time, image), (other, its_sample, its_time, its_image) = query, key
    if sample != its_sample:
        return False
    if other == 'pixels':  # noise: seen by the patches of its own image alone
        return kind == 'pixels' and image == its_image
    if kind == 'pixels' and other == 'representation' and image == its_image and sample in blind:
        return False
    return its_time <= time


@pytest.fixture(scope='module')
def gradients(built):
    """Gradients of chosen outputs with respect to text, codes, images that are read, and noise.

    `at`: (place, 0 or 1) in the three streams of outputs.
    """
    model, *_ = built

    @jax.jit
    def found(params, batch, codes, vision, z, at):
        def chosen(params, vision, z):
            t = jnp.full(z.shape[:2], 0.3)
            batch_ = batch | {'vision_pixels': vision}
            outputs = model.apply({'params': params}, batch_, codes, z, t)
            heads = (
                outputs['text_logits'].whole(),
                outputs['representation_logits'].whole(),
                outputs['x'],
            )
            # A direction of its own for each output, so that nothing cancels.
            return sum(
                jnp.sum(output[0, i] * jnp.cos(jnp.arange(output.shape[-1])) * on)
                for output, (i, on) in zip(heads, at)
            )

        by_params, *others = jax.grad(chosen, (0, 1, 2))(params, vision, z)
        text = by_params['text_embed']['table']
        return text, by_params['representation_embed']['identity']['table'], *others

    return found


@pytest.mark.parametrize('seed', range(4))
def test_a_token_depends_on_what_was_said_before_and_on_nothing_else(built, gradients, seed):
    model, params, tokenizer = built
    rng = np.random.default_rng(seed)
    talks = [random_conversation(rng, 4) for _ in range(2)]
    drops = [random_dropped(rng, talk) for talk in talks]
    rows = [spans_of(talk, tokenizer, drop) for talk, drop in zip(talks, drops)]
    blind = {i for i, drop in enumerate(drops) if drop.representation}
    batch = layout.make_batch([rows], CAPACITY, model.channels)
    words = in_words(rows, blind)
    tokens = {s: [(s, *token) for token in words[s]] for s in layout.STREAMS}
    # Different ids everywhere, so that the row of a table belongs to one token.
    batch['text_tokens'] = np.arange(CAPACITY['text'], dtype=np.int32)[None]
    codes = np.where(batch['cells'][..., 0] < 0, -1, np.arange(CAPACITY['representation']))
    vision = rng.uniform(0, 255, batch['vision_pixels'].shape).astype(np.float32)
    z = rng.normal(size=batch['pixels'].shape).astype(np.float32)
    batch = jax.tree.map(jnp.asarray, batch)
    queries = [
        (stream, int(i))
        for stream in ('text', 'representation', 'pixels')
        for i in rng.permutation(len(tokens[stream]))[:5]
    ]
    assert len(queries) >= 5
    for stream, i in queries:
        names = 'text', 'representation', 'pixels'
        at = [(i if name == stream else 0, float(name == stream)) for name in names]
        text, code, pixels, noise = map(np.asarray, gradients(params, batch, codes, vision, z, at))
        influence = {
            'text': np.abs(text).sum(-1)[: len(tokens['text'])],
            'vision': np.abs(pixels[0]).sum(-1).reshape(-1, 4).sum(-1)[: len(tokens['vision'])],
            'representation': np.abs(code).sum(-1)[: len(tokens['representation'])],
            'pixels': np.abs(noise[0]).sum(-1)[: len(tokens['pixels'])],
        }
        query = tokens[stream][i]
        for name, found in influence.items():
            expected = [depends(query, key, blind) for key in tokens[name]]
            if name == 'representation':  # begin tokens share a row of the table
                begins = codes[0, : len(found)] < 0
                found, expected = found[~begins], np.array(expected, bool)[~begins]
            np.testing.assert_array_equal(found > 0, expected, err_msg=f'{query} and {name}')


def test_later_turns_depend_on_a_generated_image(built):
    """The rules above, on one conversation: through its tokens and through what is read of it."""
    _, _, tokenizer = built
    talk = [user('a red dog'), assistant(0), user('a dog'), assistant('here')]
    words = in_words([spans_of(talk, tokenizer, conversation.NOTHING)], set())
    last = ('text', *words['text'][-1])
    for stream in ('vision', 'representation'):
        assert all(depends(last, (stream, *token), set()) for token in words[stream])
    assert not any(depends(last, ('pixels', *token), set()) for token in words['pixels'])
