"""Rewards: plain functions of (prompt, source, sample), and how they are called.

A user's own reward is such a function in a file: `--reward=my_rewards.py:brightness`.
"""

import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from absl import logging

from rf_jax.data.records import clean
from rf_jax.evaluation import image_features
from rf_jax.evaluation.image_features import Encoder
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
    """What came back: `text` that the policy wrote; an `image` uint8 [h, w, 3], and its
    representation tokens int32 [N] if the policy sampled them.
    """

    text: str = ''
    image: np.ndarray | None = None
    tokens: np.ndarray | None = None


Reward = Callable[[Prompt, Source, Sample], float]


def judged(prompt: Prompt, source: Source, sample: Sample) -> float:
    """1 if the judge finds what the prompt asks for, else 0. Raises ValueError without a claim."""
    del source
    if prompt.claim is None:
        raise ValueError(f'the judge knows only prompts about scenes, not {prompt.text!r}')
    return float(judge.accepts(prompt.claim, sample.image))


def recovered(prompt: Prompt, source: Source, sample: Sample) -> float:
    """F1 of the objects of the source's scene, by colour, shape and place. Raises ValueError for a
    source that is not a scene.
    """
    del prompt
    if source.scene is None:
        raise ValueError('objects can only be counted in scenes')
    return objects_recovered(source.scene, judge.detect(sample.image))


def objects_recovered(scene: world.Scene, found: Sequence[judge.Detection]) -> float:
    """2 |matched| / (|scene| + |found|); matched objects have one look, and centres at most
    a sixth of the side apart.
    """
    left = list(found)
    matched = 0
    for each in scene.objects:
        near = [
            other
            for other in left
            if (other.colour, other.shape) == each.look
            and max(abs(other.x - each.x), abs(other.y - each.y)) < 1 / 6
        ]
        if near:
            left.remove(near[0])
            matched += 1
    return 2 * matched / max(len(scene.objects) + len(found), 1)


def exact_answer(prompt: Prompt, source: Source, sample: Sample) -> float:
    """1 if the text is the answer."""
    del prompt
    return float(clean(sample.text).lower() == source.answer.lower())


def words(prompt: Prompt, source: Source, sample: Sample) -> float:
    """The number of words of the text; with a negative weight, a price on length."""
    del prompt, source
    return float(len(sample.text.split()))


def similarity(encoder: Encoder) -> Reward:
    """Cosine of source and sample under a frozen encoder."""

    def reward(prompt: Prompt, source: Source, sample: Sample) -> float:
        del prompt
        return image_features.similarity(encoder, source.image, sample.image)

    return reward


REWARDS: dict[str, Reward] = {
    'judge': judged,
    'recovered': recovered,
    'exact_answer': exact_answer,
    'words': words,
}


def load(text: str) -> Reward:
    """The function that a text such as `my_rewards.py:brightness` names. Raises UserError."""
    path, _, name = text.rpartition(':')
    require(
        path.endswith('.py') and name.isidentifier(),
        f'--reward={text}: expected a file and a function in it, as in my_rewards.py:brightness',
    )
    require(Path(path).is_file(), f'--reward={text}: there is no file {path}')
    spec = importlib.util.spec_from_file_location('user_reward', path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f'--reward={text}: {path} cannot be imported: {error!r}') from error
    found = getattr(module, name, None)
    functions = [key for key, value in vars(module).items() if callable(value) and key[0] != '_']
    require(
        callable(found),
        f'--reward={text}: {path} has no function {name!r}, but {", ".join(functions) or "none"}',
    )
    return found


def chosen(weights: Mapping[str, float], more: Mapping[str, Reward]) -> dict[str, Reward]:
    """The rewards of `grpo.rewards`; `more`: those that are not in REWARDS. Raises UserError."""
    known = REWARDS | dict(more)
    found = {name: choose('grpo.rewards', name, known) for name in weights}
    require(found, 'grpo.rewards is empty: nothing would be learned')
    return found


def of_group(
    rewards: Mapping[str, Reward],
    prompt: Prompt,
    source: Source,
    samples: Sequence[Sample],
    seconds: float,
) -> dict[str, list[float]] | str:
    """{name: a value for each sample}, or why there are none: a reward raised, was not finite, or
    took longer than `seconds`.
    """
    found: dict[str, list[float]] = {}
    failed: list[str] = []

    def work() -> None:
        for name, reward in rewards.items():
            values = []
            for sample in samples:
                try:
                    values.append(float(reward(prompt, source, sample)))
                except Exception as error:
                    failed.append(f'reward {name} raised {error!r}')
                    return
            if not np.isfinite(values).all():
                failed.append(f'reward {name} gave {values}')
                return
            found[name] = values

    # A daemon, so that a reward that never returns does not keep the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f'the rewards took more than grpo.reward_seconds={seconds}'
    return failed[0] if failed else found


def of_groups(
    rewards: Mapping[str, Reward],
    groups: Sequence[tuple[Prompt, Source, Sequence[Sample]]],
    seconds: float,
    counts: Counter,
) -> dict[str, np.ndarray]:
    """{name: float64 [groups, n]}; NaN in groups without rewards, which are counted and logged."""
    values = {name: np.full((len(groups), len(groups[0][2])), np.nan) for name in rewards}
    for number, (prompt, source, samples) in enumerate(groups):
        found = of_group(rewards, prompt, source, samples, seconds)
        if isinstance(found, str):
            counts['groups_skipped'] += 1
            if counts['groups_skipped'] <= 10:
                logging.warning('skipped the group of %r: %s', prompt.text, found)
            continue
        for name, each in found.items():
            values[name][number] = each
    return values
