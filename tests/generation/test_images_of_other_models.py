"""An image that another model generated, or no model like this one, is an image like any other."""

import numpy as np
import pytest
from shrink import shrink
from tiny_sampler import WORDS

from configs import base
from rf_jax.data.messages import assistant, user
from rf_jax.data.sentencepiece_tokenizer import SentencePieceTokenizer
from rf_jax.generation.chat_row import ChatRow
from rf_jax.generation.generated_image import GeneratedImage

CODES = np.zeros((2, 2), np.int32)  # of 64 x 64 pixels: patches of 16, a code for 2 x 2


@pytest.fixture
def row():
    config = shrink(base.get_config())
    config.data.capacity.update(text=64, vision=16, representation=20, vision_images=4)
    return ChatRow(config, SentencePieceTokenizer.train(WORDS * 3, 384), 3 * 16**2)


def image(side, tokens):
    return GeneratedImage(np.zeros((side, side, 3), np.uint8), tokens, '', 0)


@pytest.mark.parametrize(('side', 'tokens', 'count'), [
    (64, CODES, 1),
    (64, np.zeros((4, 4), np.int32), 0),
    (64, np.zeros((2, 2, 8), np.float32), 0),
    (64, None, 0),
    (50, np.zeros((2, 2), np.int32), 0),
])  # fmt: skip
def test_only_an_image_of_this_model_stands_as_generated(row, side, tokens, count):
    row.say([user('draw'), assistant(image(side, tokens)), user('again')])
    assert len(row.generated) == count and [each.image.size for each in row.images] == [(64, 64)]
    assert len(row.inputs(np.array([-1], np.int32))) == 5 * count
    assert row.arrays(0)


def test_an_image_of_any_size_may_be_shown(row):
    row.say([user(image(50, CODES), 'what is it?')])
    assert [each.image.size for each in row.images] == [(64, 64)] and row.arrays(0)
