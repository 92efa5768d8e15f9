"""How varied drawings are in what their prompt leaves open, which right or wrong does not tell."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from rf_jax.scenes import judge
from rf_jax.scenes.claims import third

CATEGORY = 'single_object'  # its seen prompts name a shape; place and colour are free


def measure(pictures: Iterable[np.ndarray]) -> dict[str, float]:
    """Of the objects that the judge finds in pictures, uint8 [s, s, 3]: over how many places, of
    nine thirds by thirds, and over how many colours they spread (`perplexity`).
    """
    found = [each for picture in pictures for each in judge.detect(picture)]
    return {
        'places': perplexity(Counter((third(o.y), third(o.x)) for o in found).values()),
        'colours': perplexity(Counter(o.colour for o in found).values()),
    }


def perplexity(counts: Iterable[int]) -> float:
    """How many values would, equally frequent, have the same entropy; 0 if nothing was counted."""
    counts = np.array([count for count in counts if count], float)
    if not len(counts):
        return 0.0
    share = counts / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
