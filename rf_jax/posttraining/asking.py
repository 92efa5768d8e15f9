"""What the policy is asked and shown in a collection: a function of (seed, number of the step)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from rf_jax.data import image_ops, pipeline
from rf_jax.posttraining.rewards import Prompt, Source
from rf_jax.runtime.errors import require
from rf_jax.runtime.rng import generator
from rf_jax.scenes import prompts


def prompts_of(run, number: int, count: int) -> list[Prompt]:
    """The prompts of a collection: `grpo.prompts`. Raises UserError."""
    return PROMPTS[run.config.grpo.prompts](run, number, count)


def _captions(run, number: int, count: int) -> list[Prompt]:
    """Captions of the run's examples; those of scenes with their claims."""
    found = []
    for source, index, rng in _examples(run, 'text_to_image', number, count):
        if hasattr(source, 'scene'):
            caption = _pick(rng, source.captions(index))
            found.append(Prompt(caption.text, caption.claim))
        else:
            found.append(Prompt(_pick(rng, source.record(index).captions)))
    return found


def _of_sides(*sides: str):
    """Prompts in GenEval's categories; where there are others, not those of the evaluation."""

    def sample(run, number: int, count: int) -> list[Prompt]:
        source = next(
            (s for s, *_ in run.batches.examples['text_to_image'] if hasattr(s, 'scene')), None
        )
        require(source, 'grpo.prompts: prompts of scenes need a source scenes: in data.sources')
        rng = generator(run.config.seed, 'asked', number)
        found = []
        for _ in range(count):
            by_category = _by_category(_pick(rng, sides), source.rung)
            each = _pick(rng, by_category[_pick(rng, list(by_category))])
            found.append(Prompt(each.text, each.claim))
        return found

    return sample


PROMPTS = {
    'captions': _captions,
    'seen': _of_sides('seen'),
    'held_out': _of_sides('held_out'),
    'all': _of_sides('seen', 'held_out'),
}
_EVALUATED = 50  # prompts of a category that evaluation uses
_MANY = 1000  # more than there are in any category


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


def sources_of(run, number: int, count: int) -> list[Source]:
    """The images of a collection, of the run's examples, at the size of training."""
    examples = _examples(run, 'image_to_text', number, count)
    return [_shown(run, source, index) for source, index, _ in examples]


def _shown(run, source, index: int) -> Source:
    image = source.image(index)
    image = image_ops.resize(image, *pipeline.image_size(*image.shape[:2], run.config))
    return Source(image, source.scene(index) if hasattr(source, 'scene') else None)


def questions_of(run, number: int, count: int) -> tuple[list[Source], list[Prompt]]:
    """Images with a question each; the source knows the answer."""
    shown, asked = [], []
    for source, index, rng in _examples(run, 'image_to_text', number, count):
        question, answer = _pick(rng, source.record(index).questions or (('', ''),))
        shown.append(replace(_shown(run, source, index), answer=answer))
        asked.append(Prompt(question))
    return shown, asked


def _examples(run, task: str, number: int, count: int):
    known = run.batches.examples[task]
    require(known, f'grpo.episode={run.config.grpo.episode!r}: data.sources has no example for it')
    rng = generator(run.config.seed, 'shown', number)
    for at in rng.integers(len(known), size=count).tolist():
        source, index, _ = known[at]
        yield source, index, rng


def _pick(rng: np.random.Generator, choices: Sequence):
    return choices[int(rng.integers(len(choices)))]
