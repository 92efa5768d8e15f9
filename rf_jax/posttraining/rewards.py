"""Rewards: plain functions of (prompt, source, sample), and how they are called.

A user's own reward is such a function in a file: see `own_rewards`.
"""

import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from rf_jax.data.records import clean
from rf_jax.runtime.errors import UserError, choose, require
from rf_jax.scenes import judge, world
from rf_jax.scenes.claims import Claim


@dataclass(frozen=True)
class Prompt:
    """What the model was asked; `claim`: what an image must satisfy, None if nobody knows."""

    text: str
    claim: Claim | None = None


@dataclass(frozen=True)
class Source:
    """What the model was shown: `image` uint8 [h, w, 3]. What is true of it, where that is known:
    the `scene`, and the `answer` to a question.
    """

    image: np.ndarray | None = None
    scene: world.Scene | None = None
    answer: str = ''


@dataclass(frozen=True)
class Sample:
    """What came back: `text` that the policy wrote; an `image` uint8 [h, w, 3], None if none was
    generated; its representation tokens int32 [N] if the policy sampled them.
    """

    text: str = ''
    image: np.ndarray | None = None
    tokens: np.ndarray | None = None


Reward = Callable[[Prompt, Source, Sample], float]


def judged(prompt: Prompt, source: Source, sample: Sample) -> float:
    """1 if the judge finds what the prompt asks for, else 0, also where no image came. Raises
    ValueError without a claim.
    """
    del source
    if prompt.claim is None:
        raise ValueError(f'the judge knows only prompts about scenes, not {prompt.text!r}')
    return float(sample.image is not None and judge.accepts(prompt.claim, sample.image))


def recovered(prompt: Prompt, source: Source, sample: Sample) -> float:
    """F1 of the objects of the source's scene, by colour, shape and place. Raises ValueError for a
    source that is not a scene.
    """
    del prompt
    if source.scene is None:
        raise ValueError('objects can only be counted in scenes')
    return judge.f1_of_objects(source.scene.objects, judge.detect(sample.image))


def exact_answer(prompt: Prompt, source: Source, sample: Sample) -> float:
    """1 if the text is the answer, in capitals or not."""
    del prompt
    return float(clean(sample.text).lower() == source.answer.lower())


def words(prompt: Prompt, source: Source, sample: Sample) -> float:
    """The number of words of the text; with a negative weight, a length penalty."""
    del prompt, source
    return float(len(sample.text.split()))


REWARDS: dict[str, Reward] = {
    'judge': judged,
    'recovered': recovered,
    'exact_answer': exact_answer,
    'words': words,
}


OF_SCENES = ('judge', 'recovered')  # what they need is known of scenes alone
SIMILARITY = 'similarity'  # computed by all processes together: see `collector`


def chosen(weights: Mapping[str, float], more: Mapping[str, Reward]) -> dict[str, Reward]:
    """The rewards of `grpo.rewards` but SIMILARITY; `more`: those of the user. Raises UserError."""
    for name in more:
        if name in REWARDS or name == SIMILARITY:
            raise UserError(
                f'--reward: {name!r} is the name of a reward in grpo.rewards; rename it'
            )
    known = REWARDS | dict(more) | {SIMILARITY: None}
    found = {name: choose('grpo.rewards', name, known) for name in weights}
    require(found, 'grpo.rewards is empty: nothing would be learned')
    require(any(weights.values()), 'grpo.rewards: all weights are 0: nothing would be learned')
    return {name: reward for name, reward in found.items() if reward}


def of_group(
    reward: Reward, prompt: Prompt, source: Source, samples: Sequence[Sample], seconds: float
) -> list[float] | str:
    """A value for each sample, or why there are none: the reward raised, gave a value that is not
    a finite number, or took longer than `seconds`.
    """
    found: list[float] = []
    failed: list[str] = []

    def work() -> None:
        for sample in samples:
            try:
                value = reward(prompt, source, sample)
            except BaseException as error:  # sys.exit() too would only end this thread
                failed.append(f'raised {error!r}{_place(error)}')
                return
            try:
                found.append(float(value))
            except (TypeError, ValueError):
                failed.append(f'gave {value!r:.80}, expected a number')
                return

    # A daemon, so that a reward that never returns does not keep the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f'took more than grpo.reward_seconds={seconds}'
    if failed:
        return failed[0]
    return found if np.isfinite(found).all() else f'gave {found}'


def _place(error: BaseException) -> str:
    """File and line of the reward where it raised; '' if it was never entered."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is that of the caller
    return f' ({Path(frames[0].filename).name}:{frames[0].lineno})' if frames else ''


def of_groups(
    rewards: Mapping[str, Reward],
    groups: Sequence[tuple[Prompt, Source, Sequence[Sample]]],
    seconds: float,
    counts: Counter,
) -> dict[str, np.ndarray]:
    """{name: float64 [groups, n]}; NaN where a reward failed for a group, which is counted in
    `counts[name]`, and logged the first times.
    """
    values = {name: np.full((len(groups), len(groups[0][2])), np.nan) for name in rewards}
    for number, (prompt, source, samples) in enumerate(groups):
        for name, reward in rewards.items():
            found = of_group(reward, prompt, source, samples, seconds)
            if isinstance(found, str):
                counts[name] += 1
                if counts[name] <= 3:
                    logging.warning('reward %s of the group of %r %s', name, prompt.text, found)
            else:
                values[name][number] = found
    return values
