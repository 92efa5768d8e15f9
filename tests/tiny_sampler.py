"""A sampler of a tiny model whose images and answers are not all the same."""

import jax
import jax.numpy as jnp
import numpy as np
from shrink import shrink

from configs import base
from rf_jax.data import conversation, layout
from rf_jax.data.messages import user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation import chat_row
from rf_jax.generation.chat_answer import Settings
from rf_jax.generation.placement import ONE_DEVICE
from rf_jax.generation.sampler import Sampler
from rf_jax.models import unified
from rf_jax.training.state import example_row

WORDS = ['a red heart', 'two small dogs', 'grinning face with big eyes', 'flag', 'a blue square']


def make_sampler(split: str = 'ffn', tokenizer=None) -> Sampler:
    config = shrink(base.get_config())
    config.data.max_text_tokens = 40
    config.model.backbone.split = split
    tokenizer = tokenizer or SentencePieceTokenizer.train(WORDS * 3, 384)
    model = unified.build(config, tokenizer.size)
    return Sampler(config, model, ONE_DEVICE.params(noisy_params(model, 0.15)), tokenizer)


def drawn_in_a_chat(sampler):
    """An image that answers a message, generated in chunks."""
    engine, row = sampler.chat_engine(1), sampler.chat_row()
    row.say([user('a red heart')])
    engine.start(0, row, Settings(sampling=sampler.options(steps=3)), draw=True)
    while (image := engine.step()[0].image) is None:
        pass
    return image


def full_forward(sampler, name='text_logits'):
    """Function (row) -> logits of all tokens of a conversation, by the model's training forward."""
    model = sampler.model

    @jax.jit
    def forward(params, batch, tokens):
        z, t = jnp.zeros((1, 0, model.channels)), jnp.zeros((1, 0))
        return model.apply({'params': params}, batch, tokens, z, t)[name].whole()[0]

    def of(row):
        spans = row.spans(row.pieces, conversation.NOTHING, len(row.generated))
        capacity = chat_row.chat_capacity(sampler.config)
        tokens = np.zeros((1, capacity['representation']), np.int32)
        known = row.inputs(np.array([-1], np.int32))
        tokens[0, : len(known)] = known
        batch = layout.make_batch([[spans]], capacity, model.channels)
        return np.array(forward(sampler.params, batch, tokens))

    return of


def noisy_params(model: unified.Unified, noise: float):
    """Parameters off the initial point, where images are zero and most scales are one."""
    example = example_row(model.channels)
    z = jnp.zeros((1, 4, model.channels))

    def new(key):
        params = model.init(key, example, example['input_group'], z, jnp.zeros((1, 4)))['params']
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        noisy = [x + noise * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
        return jax.tree.unflatten(structure, noisy)

    return jax.jit(new)(jax.random.key(0))
