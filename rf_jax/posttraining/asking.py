"""What the policy is asked and shown in a rollout: a function of (seed, step)."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from rf_jax.data import fitting, image_ops
from rf_jax.posttraining.rewards import Prompt, Source
from rf_jax.runtime.errors import UserError, require
from rf_jax.runtime.rng import generator
from rf_jax.scenes import prompts, riddles


def prompts_of(run, number: int, count: int) -> list[Prompt]:
    """The prompts of a rollout: `grpo.prompts`. Raises UserError."""
    return PROMPTS[run.config.grpo.prompts](run, number, count)


def _captions(run, number: int, count: int) -> list[Prompt]:
    """Captions of the run's examples; those of scenes with their claims."""
    found = []
    examples = _examples(run, 'text_to_image', number)
    for source, index, rng in itertools.islice(examples, count):
        if hasattr(source, 'scene'):
            caption = _pick(rng, source.captions(index))
            found.append(Prompt(caption.text, caption.claim))
        else:
            found.append(Prompt(_pick(rng, source.record(index).captions)))
    return found


def _of_sides(*sides: str):
    """Prompts in GenEval's categories; where there are others, not those of the evaluation."""

    def sample(run, number: int, count: int) -> list[Prompt]:
        rung = _rung(run)
        rng = generator(run.config.seed, 'asked', number)
        found = []
        for _ in range(count):
            by_category = _by_category(_pick(rng, sides), rung)
            each = _pick(rng, by_category[_pick(rng, list(by_category))])
            found.append(Prompt(each.text, each.claim))
        return found

    return sample


def _riddles(run, number: int, count: int) -> list[Prompt]:
    """Training riddles, except those of the evaluation."""
    known = _riddles_apart(_rung(run))
    rng = generator(run.config.seed, 'asked', number)
    asked = [_pick(rng, known) for _ in range(count)]
    return [Prompt(each.text, each.claim) for each in asked]


def _rung(run):
    """Of the run's first source of scenes."""
    source = next((each for each in run.batches.sources if hasattr(each, 'scene')), None)
    require(source, 'grpo.prompts: prompts of scenes need a source scenes: in data.sources')
    return source.rung


PROMPTS = {
    'captions': _captions,
    'seen': _of_sides('seen'),
    'held_out': _of_sides('held_out'),
    'all': _of_sides('seen', 'held_out'),
    'riddles': _riddles,
}
_EVALUATED = 50  # prompts of a category that evaluation uses
_RIDDLES = 200  # riddles that evaluation uses
_MANY = 2000  # more than there are in any category
_MANY_RIDDLES = 10_000
_TRIES = 100


@cache
def _by_category(side: str, rung) -> dict[str, list[prompts.Prompt]]:
    evaluated = {p.text for p in prompts.prompt_set(side, rung, _EVALUATED)}
    found: dict[str, dict] = {}
    for each in prompts.prompt_set(side, rung, _MANY):
        found.setdefault(each.category, {})[each.text] = each
    return {
        category: [p for p in own.values() if p.text not in evaluated] or list(own.values())
        for category, own in found.items()
    }


@cache
def _riddles_apart(rung) -> list[riddles.Riddle]:
    return riddles.riddle_set('seen', rung, _MANY_RIDDLES)[_RIDDLES:]


def sources_of(run, number: int, count: int) -> list[Source]:
    """The images of a rollout, from the run's examples, at the training size."""
    return [source for source, _, _ in _shown(run, number, count, lambda record: True)]


def questions_of(run, number: int, count: int) -> tuple[list[Source], list[Prompt]]:
    """Images with a question each; the source knows the answer. Raises UserError."""
    shown, asked = [], []
    for source, record, rng in _shown(run, number, count, lambda record: record.questions):
        question, answer = _pick(rng, record.questions)
        shown.append(replace(source, answer=answer))
        asked.append(Prompt(question))
    return shown, asked


def _shown(run, number: int, count: int, fits: Callable):
    """`count` times (Source, its record, rng); images that cannot be read are passed over. Raises
    UserError after _TRIES in a row that do not fit, or cannot be read.
    """
    trials = _examples(run, 'image_to_text', number)
    for _ in range(count):
        for source, index, rng in itertools.islice(trials, _TRIES):
            record = source.record(index)
            if not fits(record):
                continue
            try:
                image = source.image(index)
            except image_ops.BadImage:
                continue
            image = image_ops.resize(image, *fitting.image_size(*image.shape[:2], run.config))
            scene = source.scene(index) if hasattr(source, 'scene') else None
            yield Source(image, scene), record, rng
            break
        else:
            raise UserError(
                f'grpo.episode={run.config.grpo.episode!r}: {_TRIES} examples of data.sources in a '
                'row have no question, or an image that cannot be read'
            )


def _examples(run, task: str, number: int):
    """Endlessly (source, index, rng)."""
    pools, count = run.batches.pools, run.batches.pools.count(task)
    require(count, f'grpo.episode={run.config.grpo.episode!r}: data.sources has no example for it')
    rng = generator(run.config.seed, 'shown', number)
    while True:
        yield *pools.example(task, int(rng.integers(count))), rng


def _pick(rng: np.random.Generator, choices: Sequence):
    return choices[int(rng.integers(len(choices)))]
