"""The codes of a run: how many of them are used, and what the representation tokens of scenes say
about their content and about their place.

Information in bits, estimated from counts. With a few thousand tokens `shared` and `place` are
biased upwards, more so with more codes: for pure noise they are 0.6 and 0.2 with 48 codes, 0.9 and
0.5 with 128 codes (200 images of 9 tokens). Compare only codebooks of equal size over equally
many tokens.

A good target carries much information about the content, and little entropy that neither content
nor place explains: no prompt can predict that part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rf_jax.models import quantizer, unified
from rf_jax.models.representation import features
from rf_jax.runtime import distributed
from rf_jax.scenes.render import segmentation
from rf_jax.scenes.world import COLOURS, SHAPES, Scene
from rf_jax.training.state import State
from rf_jax.training.train_loop import Run


def codes_over_an_epoch(run: Run, state: State) -> float:
    """Share of the K prototypes, in [0, 1], that the batches of one epoch use, without training.

    If an epoch is longer than a window of the packing plan, only the first window counts.
    """
    assign = quantizer.build(run.config)
    model = unified.build(run.config, run.tokenizer.size, run.mesh)  # sharded as the state is
    count = run.config.model.representation.codebook_size
    is_used = np.zeros(count, bool)

    def used(state, batch):
        # Not forcing.quantize, which initialises the codebook at a step of data_init_steps.
        z, real = features.group_features(run.config, model, state.ema, batch)
        codes = assign(z, state.codebook, real)
        return jnp.zeros(count + 1, bool).at[jnp.where(real, codes, count)].set(True)[:count]

    # Replicated, as each host has only some of the rows.
    used = jax.jit(used, out_shardings=NamedSharding(run.mesh, PartitionSpec()))
    # Of the first process: lanes have windows of their own lengths, and all must take each step.
    plan = run.batches.plan
    steps = min(plan.steps_per_epoch, plan.steps_per_window)
    for number in range(int(distributed.broadcast(lambda: str(steps).encode()))):
        is_used |= np.asarray(used(state, run.put(run.batches.batch(number))))
    return float(is_used.mean())


@dataclass(frozen=True)
class Content:
    """Bits per token.

    `shared`: mutual information of code and content (a look, or ground); `place`: mutual
    information of code and place in the image; `unexplained`: entropy of the code given the
    content.
    """

    shared: float
    place: float
    unexplained: float


def labels(scene: Scene, size: int, side: int) -> np.ndarray:
    """int64 [side, side]: the look (colour, shape) of most object pixels in each token's square; -1
    for ground, where objects cover less than a tenth. The image has `size` pixels and `side`
    tokens per side.
    """
    squares = segmentation(scene, size).reshape(side, size // side, side, size // side)
    squares = squares.swapaxes(1, 2).reshape(side * side, -1)
    looks = np.full(side * side, -1)
    for i, square in enumerate(squares):
        counts = np.bincount(square, minlength=len(scene.objects) + 1)[1:]
        if counts.sum() >= 0.1 * square.size:
            looks[i] = _number(*scene.objects[int(counts.argmax())].look)
    return looks.reshape(side, side)


def measure(codes: Sequence[np.ndarray], content: Sequence[np.ndarray]) -> Content:
    """Of the codes and the content (`labels`), int [side, side], of each image."""
    code, look = (
        np.concatenate([c.ravel() for c in codes]),
        np.concatenate([c.ravel() for c in content]),
    )
    place = np.concatenate([np.arange(c.size) for c in codes])
    both = entropy(code, look)
    return Content(
        shared=entropy(code) + entropy(look) - both,
        place=entropy(code) + entropy(place) - entropy(code, place),
        unexplained=both - entropy(look),
    )


def entropy(*of: np.ndarray) -> float:
    """Bits, of the joint empirical distribution of integer arrays [n]."""
    _, counts = np.unique(np.stack(of), axis=1, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def _number(colour: str, shape: str) -> int:
    return list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)
