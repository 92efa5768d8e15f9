"""Compositional generation: draw prompts, and judge the pictures one by one, as right or wrong.

As GenEval (Ghosh et al. 2023), which puts up with other objects beside those asked for.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rf_jax.scenes.judge import accepts
from rf_jax.scenes.prompts import Prompt


def draw(
    sampler, prompts: Sequence[Prompt], each: int = 4, seed: int = 0
) -> list[list[np.ndarray]]:
    """`each` pictures, uint8 [s, s, 3], of every prompt, by a `Sampler`."""
    pictures = sampler.draw(requests(sampler, [prompt.text for prompt in prompts], each, seed))
    return [pictures[i : i + each] for i in range(0, len(pictures), each)]


def requests(sampler, texts: Sequence[str], each: int = 1, seed: int = 0, size=None) -> list:
    """`each` requests of every text, of pictures of `size` (height, width) in pixels.

    A text that comes again is drawn anew.
    """
    found, before = [], Counter()
    for text in texts:
        first = before[text]
        before[text] += each
        found += [sampler.request(text, seed, first + i, size) for i in range(each)]
    return found


def judge(prompts: Sequence[Prompt], pictures: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """bool [prompts, each]: which pictures bear out the claim of their prompt."""
    return np.array(
        [
            [accepts(prompt.claim, picture) for picture in row]
            for prompt, row in zip(prompts, pictures, strict=True)
        ],
        bool,
    )
