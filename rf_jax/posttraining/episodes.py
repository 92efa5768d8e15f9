"""Episodes: what the policy is asked, what it samples, and the training rows of the samples.

generate      a prompt; the policy generates images of it: representation tokens, flow, or both
answer        a question about an image; the policy writes answers
describe      an image; the policy writes captions, a frozen decoder generates an image from each
reconstruct   an image and its frozen caption; the policy generates images of the caption
both          an image; the policy writes captions, and an image from each: one model, one reward

In Unified-GRPO (arXiv 2509.09666) `describe` is "generation for understanding", `reconstruct`
"understanding for generation".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data.batch import Batch
from rf_jax.data.records import clean
from rf_jax.generation import inputs
from rf_jax.posttraining import asking, training_rows
from rf_jax.posttraining.rewards import Prompt, Sample, Source
from rf_jax.posttraining.rollout_programs import RolloutPrograms
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold, generator


@dataclass
class Collected:
    """Groups of samples. `rows`: batches of one row a sample, in order of the groups."""

    asked: list[Prompt]
    shown: list[Source]
    samples: list[list[Sample]]
    rows: list[Batch]
    log_probs: list[dict[str, np.ndarray]]  # by policy, what the rollout of each of `rows` had


def generate(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Images of prompts."""
    asked = asking.prompts_of(run, number, groups_of(run.config))
    n = run.config.grpo.group_size
    texts = [each.text for each in asked for _ in range(n)]
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, texts, [None] * len(texts))
    return Collected(asked, [Source()] * len(asked), _grouped(drawn, n), [rows], [log_probs])


def answer(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Answers to questions about images."""
    shown, asked = asking.questions_of(run, number, groups_of(run.config))
    found, answers = _written(run, rollouts, params, number, shown, asked)
    samples = _grouped([Sample(text) for text in answers], run.config.grpo.group_size)
    return replace(found, samples=samples)


def describe(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Captions of images, and what a frozen decoder makes of them."""
    found, captions = _captioned(run, rollouts, params, number)
    seed = fold(run.config.seed, 'decoder', number) % 2**31
    images = rollouts.decoded(captions, seed, _sizes(run, found.shown))
    samples = [Sample(text, image) for text, image in zip(captions, images)]
    return replace(found, samples=_grouped(samples, run.config.grpo.group_size))


def reconstruct(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Images of the captions that the frozen model gives to images."""
    n = run.config.grpo.group_size
    shown = asking.sources_of(run, number, groups_of(run.config))
    captions = rollouts.captions([each.image for each in shown])
    rows, drawn, log_probs = _drawn(
        *(run, rollouts, params, number),
        *([text for text in captions for _ in range(n)], _sizes(run, shown)),
    )
    asked = [Prompt(text) for text in captions]
    return Collected(asked, shown, _grouped(drawn, n), [rows], [log_probs])


def both(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Captions of images, and images of these captions, by one policy."""
    found, captions = _captioned(run, rollouts, params, number)
    sizes = _sizes(run, found.shown)
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, captions, sizes)
    samples = [replace(each, text=text) for each, text in zip(drawn, captions)]
    return replace(
        found,
        samples=_grouped(samples, run.config.grpo.group_size),
        rows=[*found.rows, rows],
        log_probs=[*found.log_probs, log_probs],
    )


class Episode(NamedTuple):
    """`collect(run, programs, params, number)`; `rows` of a sample; the policies that it can train;
    whether there are questions before its texts.
    """

    collect: Callable
    rows: int
    policies: tuple[str, ...]
    questions: bool = False


EPISODES = {
    'generate': Episode(generate, 1, ('representation', 'flow')),
    'answer': Episode(answer, 1, ('text',), questions=True),
    'describe': Episode(describe, 1, ('text',)),
    'reconstruct': Episode(reconstruct, 1, ('representation', 'flow')),
    'both': Episode(both, 2, ('text', 'representation', 'flow')),
}


def groups_of(config: ConfigDict) -> int:
    """Groups of a collection: its rows are those of `grpo.updates` batches. Raises UserError."""
    c = config.grpo
    rows = config.data.batch_size * c.updates
    each = c.group_size * EPISODES[c.episode].rows
    if c.group_size < 2:
        raise UserError(f'grpo.group_size={c.group_size}: a group of one has no better sample')
    if rows % each:
        raise UserError(
            f'data.batch_size x grpo.updates = {rows} rows are not a multiple of {each}, the rows '
            f'of a group (grpo.group_size={c.group_size}, grpo.episode={c.episode!r})'
        )
    return rows // each


def _captioned(run, rollouts: RolloutPrograms, params, number: int) -> tuple[Collected, list[str]]:
    shown = asking.sources_of(run, number, groups_of(run.config))
    return _written(run, rollouts, params, number, shown, [Prompt('')] * len(shown))


def _written(run, rollouts: RolloutPrograms, params, number: int, shown, asked):
    """(groups without samples, the texts) of images and questions."""
    n = run.config.grpo.group_size
    pairs = [(s.image, a.text) for s, a in zip(shown, asked) for _ in range(n)]
    found = rollouts.texts(params, pairs, _seeds(run.config, 'text', number, len(pairs)))
    rows = training_rows.of_texts(rollouts, pairs, found)
    texts = [clean(run.tokenizer.decode(ids.tolist())) for ids in found.tokens]
    return Collected(asked, shown, [], [rows], [{'text': found.log_probs}]), texts


def _sizes(run, shown: Sequence[Source]) -> list[tuple[int, int]]:
    """(height, width) of the shown image, for each sample."""
    return [each.image.shape[:2] for each in shown for _ in range(run.config.grpo.group_size)]


def _drawn(run, rollouts: RolloutPrograms, params, number: int, texts: Sequence[str], sizes):
    """(training rows, samples, log-probabilities) of one image of each text, of its size; None: the
    largest square.
    """
    config = run.config
    seeds = _seeds(config, 'image', number, len(texts))
    requests = [
        replace(inputs.request(config, text, 0, size=size), seed=int(seed))
        for text, size, seed in zip(texts, sizes, seeds)
    ]
    found = rollouts.images(params, requests)
    rows = training_rows.of_images(rollouts, requests, found)
    images = rollouts.whole_images(requests, found)
    for array in (*images, found.tokens):
        array.flags.writeable = False  # rewards share them
    samples = [Sample('', *each) for each in zip(images, found.tokens)]
    log_probs = {'representation': found.token_log_probs, 'flow': found.step_log_probs}
    return rows, samples, log_probs


def _seeds(config: ConfigDict, what: str, number: int, count: int) -> np.ndarray:
    return generator(config.seed, 'rollout', what, number).integers(2**31, size=count)


def _grouped(samples: Sequence[Sample], n: int) -> list[list[Sample]]:
    return [list(samples[start : start + n]) for start in range(0, len(samples), n)]
