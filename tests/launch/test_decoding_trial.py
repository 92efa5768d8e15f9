"""The loops that decoding is compared with give what the sampler gives."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_sampler import make_sampler

sys.path.insert(0, str(Path(__file__).parents[2] / 'launch'))
trial = importlib.import_module('decoding_trial')

pytestmark = pytest.mark.slow


def test_the_naive_loops_give_the_same_text_and_tokens():
    sampler = make_sampler()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    answers = trial.naive_answers(sampler, trial.forward(sampler, 'text_logits'), images)
    ends = [np.append(row, sampler.tokenizer.eos).tolist() for row in answers]
    found = [row[: row.index(sampler.tokenizer.eos)] for row in ends]
    assert list(map(sampler.tokenizer.decode, found)) == sampler.answer(images, trial.QUESTION)
    run = trial.forward(sampler, 'representation_logits', 'x')
    tokens, patches = trial.naive_image(sampler, run, 'a red heart')
    np.testing.assert_array_equal(tokens, sampler.generate('a red heart')[0].tokens.ravel())
    assert patches.shape == (1, 16, sampler.model.channels)
