"""Rewards: plain functions of (prompt, source, sample), and how they are called.

A user's own reward is such a function in a file: `--reward=my_rewards.py:brightness`.
"""

import importlib.util
import sys
import threading
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
    """1 if the text is the answer."""
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


def load(text: str) -> Reward:
    """The function that a text such as `my_rewards.py:brightness` names. Raises UserError."""
    path, _, name = text.rpartition(':')
    require(
        path.endswith('.py') and name.isidentifier(),
        f'--reward={text}: expected a file and a function in it, as in my_rewards.py:brightness',
    )
    require(Path(path).is_file(), f'--reward={text}: there is no file {path}')
    spec = importlib.util.spec_from_file_location(f'reward_{Path(path).stem}', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
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


def load_all(texts: Sequence[str]) -> dict[str, Reward]:
    """{name of the function: function}. Raises UserError if two have the same name."""
    found: dict[str, Reward] = {}
    for text in texts:
        name = text.rpartition(':')[2]
        require(name not in found, f'--reward={text}: there are two functions {name}; rename one')
        found[name] = load(text)
    return found


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
    return {name: reward for name, reward in found.items() if reward}


def of_group(
    reward: Reward, prompt: Prompt, source: Source, samples: Sequence[Sample], seconds: float
) -> list[float] | str:
    """A value for each sample, or why there are none: the reward raised, gave a value that is not
    finite, or took longer than `seconds`.
    """
    found: list[float] = []
    failed: list[str] = []

    def work() -> None:
        try:
            found.extend(float(reward(prompt, source, sample)) for sample in samples)
        except Exception as error:
            failed.append(f'raised {error!r}')

    # A daemon, so that a reward that never returns does not keep the process.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return f'took more than grpo.reward_seconds={seconds}'
    if failed:
        return failed[0]
    return found if np.isfinite(found).all() else f'gave {found}'


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
