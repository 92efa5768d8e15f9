"""Compositional generation: images of prompts, each judged correct or wrong.

As in GenEval (Ghosh et al. 2023, arXiv 2310.11513), which tolerates other objects beside those of
the prompt.
"""

from collections.abc import Sequence

import numpy as np

from rf_jax.scenes.judge import accepts
from rf_jax.scenes.prompts import Prompt


def generate(
    sampler, prompts: Sequence[Prompt], each: int = 4, seed: int = 0
) -> list[list[np.ndarray]]:
    """`each` images, uint8 [s, s, 3], of every prompt, by a `Sampler`.

    Prompts of equal text get different images.
    """
    texts = [prompt.text for prompt in prompts for _ in range(each)]
    images = [generated.image for generated in sampler.generate(texts, seed=seed)]
    return [images[i : i + each] for i in range(0, len(images), each)]


def judge(prompts: Sequence[Prompt], images: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """bool [prompts, each]: which images satisfy the claim of their prompt."""
    return np.array(
        [
            [accepts(prompt.claim, image) for image in row]
            for prompt, row in zip(prompts, images, strict=True)
        ],
        bool,
    )
