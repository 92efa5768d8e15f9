"""Episodes: what the policy is asked, what it samples, and the training rows of the samples.

generate      a prompt; the policy generates images of it: representation tokens, flow, or both
answer        a question about an image; the policy writes answers
describe      an image; the policy writes captions, a frozen decoder generates images from each
reconstruct   an image and its frozen caption; the policy generates images of the caption
both          an image; the policy writes captions, and images from each: one model, one reward
think         a prompt; the policy writes thoughts, and goes on with images after each

In Unified-GRPO (arXiv 2509.09666) `describe` is "generation for understanding", `reconstruct`
"understanding for generation". `think` is the two-level GRPO of Think-Then-Generate (arXiv
2601.10332).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from rf_jax.data import layout
from rf_jax.data.batch import Batch
from rf_jax.data.records import clean
from rf_jax.generation import inputs
from rf_jax.posttraining import asking, training_rows
from rf_jax.posttraining.rewards import Prompt, Sample, Source
from rf_jax.posttraining.rollout_programs import ImageRequest, RolloutPrograms
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import fold, generator


@dataclass
class Collected:
    """Groups of samples: `grpo.group_size` texts or images. If texts have images, a sample is an
    image with its text, and the images of a text are consecutive. `rows`: batches of one row a
    text, or one a sample.
    """

    asked: list[Prompt]
    shown: list[Source]
    samples: list[list[Sample]]
    rows: list[Batch]
    log_probs: list[dict[str, np.ndarray]]  # by policy, what the rollout of each of `rows` had


def generate(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Images of prompts."""
    asked = asking.prompts_of(run, number, groups_of(run.config))
    n = run.config.grpo.group_size
    prompts = _prompts(run, [each.text for each in asked for _ in range(n)])
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, prompts, _squares(run, prompts))
    return Collected(asked, [Source()] * len(asked), grouped(drawn, n), [rows], [log_probs])


def answer(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Answers to questions about images."""
    shown, asked = asking.questions_of(run, number, groups_of(run.config))
    found, answers = _written(run, rollouts, params, number, shown, asked)
    samples = grouped([Sample(text) for text in answers], run.config.grpo.group_size)
    return replace(found, samples=samples)


def describe(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Captions of images, and what a frozen decoder makes of them. Equal captions get equal
    images, so that the randomness of the decoder does not tell them apart.
    """
    found, captions = _captioned(run, rollouts, params, number)
    asked = [(text, image) for text in captions for image in range(run.config.grpo.images)]
    captions = [text for text, _ in asked]
    seed = fold(run.config.seed, 'decoder', number) % 2**31
    images = rollouts.decoded(asked, seed, _sizes(run, found.shown))
    samples = [Sample(text, image) for text, image in zip(captions, images)]
    return replace(found, samples=grouped(samples, samples_of(run.config)))


def reconstruct(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Images of the captions that the frozen model gives to images."""
    n = run.config.grpo.group_size
    shown = asking.sources_of(run, number, groups_of(run.config))
    captions = rollouts.captions([each.image for each in shown])
    prompts = _prompts(run, [text for text in captions for _ in range(n)])
    sizes = _sizes(run, shown)
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, prompts, sizes)
    asked = [Prompt(text) for text in captions]
    return Collected(asked, shown, grouped(drawn, n), [rows], [log_probs])


def both(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Captions of images, and images of these captions, by one policy."""
    found, captions = _captioned(run, rollouts, params, number)
    captions = [text for text in captions for _ in range(run.config.grpo.images)]
    prompts, sizes = _prompts(run, captions), _sizes(run, found.shown)
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, prompts, sizes)
    samples = [replace(each, text=text) for each, text in zip(drawn, captions)]
    return replace(
        found,
        samples=grouped(samples, samples_of(run.config)),
        rows=[*found.rows, rows],
        log_probs=[*found.log_probs, log_probs],
    )


def think(run, rollouts: RolloutPrograms, params, number: int) -> Collected:
    """Thoughts about prompts, and images after each, in one row: as in a conversation, an image
    follows the token <image>, and sees prompt and thought. After a thought without it there is
    none.
    """
    config, images = run.config, run.config.grpo.images
    asked = asking.prompts_of(run, number, groups_of(config))
    pairs = [(None, f'draw {each.text}') for each in asked for _ in range(config.grpo.group_size)]
    found = rollouts.texts(params, pairs, _seeds(config, 'text', number, len(pairs)))
    said = training_rows.answers(rollouts, pairs, found)
    prompts = [each for each in said for _ in range(images)]
    rows, drawn, log_probs = _drawn(run, rollouts, params, number, prompts, _squares(run, prompts))
    follows = np.array([each.tokens[-1] == run.tokenizer.image for each in prompts])
    for name in ('representation_weight', 'pixel_weight'):
        rows[name] *= follows[:, None]
    thoughts = [text for text in _decoded(run, found) for _ in range(images)]
    samples = [
        replace(each if there else Sample(), text=text)
        for each, there, text in zip(drawn, follows, thoughts)
    ]
    log_probs['text'] = np.repeat(found.log_probs, images, 0)
    groups = grouped(samples, samples_of(config))
    return Collected(asked, [Source()] * len(asked), groups, [rows], [log_probs])


class Episode(NamedTuple):
    """`collect(run, programs, params, number)`; the `rows` of a text and those of an image; the
    policies that it can train; which rewards of the package find in its samples what they need;
    whether there are questions before its texts, and images after them.
    """

    collect: Callable
    rows: tuple[int, int]
    policies: tuple[str, ...]
    rewards: tuple[str, ...]
    questions: bool = False
    images: bool = False


_IMAGES = ('representation', 'flow')
_COMPARED = ('similarity', 'recovered')  # of what is shown and an image
EPISODES = {
    'generate': Episode(generate, (0, 1), _IMAGES, ('judge',)),
    'answer': Episode(answer, (1, 0), ('text',), ('exact_answer', 'words'), questions=True),
    'describe': Episode(describe, (1, 0), ('text',), (*_COMPARED, 'words'), images=True),
    'reconstruct': Episode(reconstruct, (0, 1), _IMAGES, _COMPARED),
    'both': Episode(both, (1, 1), ('text', *_IMAGES), (*_COMPARED, 'words'), images=True),
    'think': Episode(
        think, (0, 1), ('text', *_IMAGES), ('judge', 'words'), questions=True, images=True
    ),
}


def texts_of(groups: Sequence[Sequence[Sample]], config: ConfigDict) -> list[list]:
    """What the texts of each group are compared by: their words, and whether images follow. Samples
    that are not texts with images are all different.
    """
    if not EPISODES[config.grpo.episode].images:
        return [list(range(len(group))) for group in groups]
    firsts = [group[:: config.grpo.images] for group in groups]
    return [[(each.text, each.image is None) for each in group] for group in firsts]


def samples_of(config: ConfigDict) -> int:
    """Samples of a group."""
    return config.grpo.group_size * config.grpo.images


def groups_of(config: ConfigDict) -> int:
    """Groups of a rollout: its rows are those of `grpo.updates` batches. Raises UserError."""
    c = config.grpo
    rows = config.data.batch_size * c.updates
    of_text, of_image = EPISODES[c.episode].rows
    each = c.group_size * (of_text + of_image * c.images)
    if c.group_size < 2:
        raise UserError(f'grpo.group_size={c.group_size}: a group of one has no better sample')
    if c.images > 1 and not EPISODES[c.episode].images:
        raise UserError(
            f'grpo.images={c.images}: grpo.episode={c.episode!r} has no texts with images; the '
            'samples of a group are grpo.group_size'
        )
    if rows % each:
        raise UserError(
            f'data.batch_size x grpo.updates = {rows} rows are not a multiple of {each}, the rows '
            f'of a group (grpo.group_size={c.group_size}, grpo.images={c.images}, '
            f'grpo.episode={c.episode!r})'
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
    return Collected(asked, shown, [], [rows], [{'text': found.log_probs}]), _decoded(run, found)


def _decoded(run, found) -> list[str]:
    return [clean(run.tokenizer.decode(ids.tolist())) for ids in found.tokens]


def _sizes(run, shown: Sequence[Source]) -> list[tuple[int, int]]:
    """(height, width) of the shown image, for each sample."""
    return [each.image.shape[:2] for each in shown for _ in range(samples_of(run.config))]


def _squares(run, prompts: Sequence[layout.Text]) -> list[tuple[int, int]]:
    """(height, width) of the largest square, for each sample."""
    return [inputs.largest_square(run.config)] * len(prompts)


def _prompts(run, texts: Sequence[str]) -> list[layout.Text]:
    return [inputs.prompt_span(run.config, run.tokenizer, clean(text)) for text in texts]


def _drawn(
    run, rollouts: RolloutPrograms, params, number: int, prompts: Sequence[layout.Text], sizes
):
    """(training rows, samples, log-probabilities) of one image after each prompt, of its size."""
    config = run.config
    seeds = _seeds(config, 'image', number, len(prompts)).tolist()
    requests = [
        ImageRequest(prompt, *size, seed) for prompt, size, seed in zip(prompts, sizes, seeds)
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


def grouped(samples: Sequence[Sample], n: int) -> list[list[Sample]]:
    """Groups of `n` consecutive samples."""
    return [list(samples[start : start + n]) for start in range(0, len(samples), n)]
