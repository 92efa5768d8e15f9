"""Compositional generation: images of prompts, each judged correct or wrong.

As in GenEval (Ghosh et al. 2023, arXiv 2310.11513), which tolerates other objects beside those of
the prompt. And how varied images are in what the prompt leaves open.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from rf_jax.scenes.claims import third
from rf_jax.scenes.judge import accepts, detect
from rf_jax.scenes.prompts import Prompt

FREE = 'single_object'  # its seen prompts name a shape; place and colour are free


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


def variety(images: Iterable[np.ndarray]) -> dict[str, float]:
    """Perplexity of the places (a grid of 3 x 3) and of the colours of all objects that the judge
    finds in the images, uint8 [s, s, 3].
    """
    objects = [each for image in images for each in detect(image)]
    return {
        'places': perplexity(Counter((third(o.y), third(o.x)) for o in objects).values()),
        'colours': perplexity(Counter(o.colour for o in objects).values()),
    }


def perplexity(counts: Iterable[int]) -> float:
    """The number of equally frequent values that has the same entropy; 0 without any count."""
    counts = np.array([count for count in counts if count], float)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
