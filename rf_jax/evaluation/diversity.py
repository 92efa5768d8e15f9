"""How varied generated images are in what the prompt leaves open."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from rf_jax.scenes import judge
from rf_jax.scenes.claims import third

CATEGORY = 'single_object'  # its seen prompts name a shape; place and colour are free


def measure(images: Iterable[np.ndarray]) -> dict[str, float]:
    """Perplexity of the places (a grid of 3 x 3) and of the colours of all objects that the judge
    finds in the images, uint8 [s, s, 3].
    """
    objects = [each for image in images for each in judge.detect(image)]
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
