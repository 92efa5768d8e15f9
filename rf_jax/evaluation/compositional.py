"""Compositional generation: draw prompts, and judge the pictures one by one, as right or wrong.

As GenEval (Ghosh et al. 2023), which puts up with other objects beside those asked for.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.evaluation.judge import accepts
from rf_jax.evaluation.prompts import Prompt


def draw(
    sampler, prompts: Sequence[Prompt], each: int = 4, seed: int = 0
) -> list[list[np.ndarray]]:
    """`each` pictures, uint8 [s, s, 3], of every prompt, by a `Sampler`.

    A prompt that comes again is drawn anew.
    """
    requests, before = [], Counter()
    for prompt in prompts:
        first = before[prompt.text]
        before[prompt.text] += each
        requests += [sampler.request(prompt.text, seed, first + i) for i in range(each)]
    pictures = sampler.draw(requests)
    return [pictures[i : i + each] for i in range(0, len(pictures), each)]


def judge(prompts: Sequence[Prompt], pictures: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """bool [prompts, each]: which pictures bear out the claim of their prompt."""
    return np.array(
        [
            [accepts(prompt.claim, picture) for picture in row]
            for prompt, row in zip(prompts, pictures, strict=True)
        ],
        bool,
    )
