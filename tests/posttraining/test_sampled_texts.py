"""Sampled texts end at any of the tokenizer's ends, and are learned up to there."""

from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_sampler import make_sampler

from rf_jax.generation import inputs
from rf_jax.posttraining import rollout, training_rows

pytestmark = pytest.mark.slow

LENGTH = 6


@pytest.fixture(scope='module')
def sampled():
    """(sampler, pairs, function (ends) -> Texts): the same keys give the same tokens."""
    sampler = make_sampler()
    pairs = [(np.full((64, 64, 3), 60 * i, np.uint8), 'what is this?') for i in range(4)]
    rows, lengths = inputs.answer_rows(
        sampler.config, sampler.tokenizer, sampler.model.channels, pairs, LENGTH
    )
    keys = jax.random.split(jax.random.key(0), len(pairs))

    def texts(ends):
        program = jax.jit(partial(rollout.texts, sampler.model, LENGTH, ends))
        return program(sampler.params, rows, lengths, keys)

    return sampler, pairs, texts


@pytest.fixture(scope='module')
def ended(sampled):
    """(tokens without an end [4, LENGTH], two of them that end texts, the texts with these)."""
    whole = np.asarray(sampled[2]((-1,)).tokens)
    ends = int(whole[0, 1]), int(whole[1, 2])
    return whole, ends, sampled[2](ends)


def first(row, ends):
    return next((i for i, token in enumerate(row, 1) if token in ends), LENGTH)


def test_a_text_ends_at_any_of_its_ends(ended):
    whole, ends, found = ended
    tokens, log_probs = np.asarray(found.tokens), np.asarray(found.log_probs)
    stops = [first(row, ends) for row in whole]
    assert {row[stop - 1] for row, stop in zip(whole, stops)} >= set(ends)
    for row, right, values, stop in zip(tokens, whole, log_probs, stops):
        np.testing.assert_array_equal(row[:stop], right[:stop])
        assert (row[stop:] == ends[0]).all()
        assert (values[:stop] < 0).all() and not values[stop:].any()


def test_a_text_is_learned_up_to_its_end(sampled, ended):
    (sampler, pairs, _), (_, ends, found) = sampled, ended
    rollouts = SimpleNamespace(
        config=sampler.config,
        tokenizer=sampler.tokenizer,
        stops=ends,
        channels=sampler.model.channels,
        flow_channels=sampler.model.flow_channels,
    )
    rows = training_rows.of_texts(rollouts, pairs, jax.tree.map(np.asarray, found))
    for tokens, targets, weights in zip(
        np.asarray(found.tokens), rows['text_targets'], rows['text_weight']
    ):
        learned = targets[weights > 0]
        np.testing.assert_array_equal(learned, tokens[: first(tokens, ends)])
        assert weights.sum() == pytest.approx(1)
