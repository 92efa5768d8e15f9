"""Does the model know its training images? Retrieval by generated images, and exact captions.

Retrieval: is the image of a caption among the 10 of the gallery that are nearest to the image
generated from that caption? Nearness is the cosine of 16 x 16 RGB thumbnails after subtracting the
gallery's mean. Chance is 10 / gallery size.
"""

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.data import captions, fitting, image_ops, source_list
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.errors import UserError
from rf_jax.runtime.rng import generator

SIDE = 16
NEAREST = 10
GALLERY = 5000  # largest gallery
_CHOSEN_FROM = 2**22  # images, evenly spaced, among which a larger set is sampled


@dataclass(frozen=True)
class Result:
    """Rates in [0, 1] over `count` images, with the generated images and the captions.

    If the run does not train a task, its rate is None and its list is empty. `too_long` labels have
    more than `longest` tokens, the limit of the run's answers; `exact` is None if all of them do.
    """

    count: int
    gallery: int
    top1: float | None
    top10: float | None
    exact: float | None
    labels: list[str]
    generated: list[np.ndarray]
    truth: list[np.ndarray]
    answers: list[str]
    too_long: int = 0
    longest: int = 0

    def table(self) -> str:
        """The result as text, with 95 % Wilson intervals."""
        rows = [
            (f'generated: right image among {NEAREST} nearest of {self.gallery:,}', self.top10,
             min(1.0, NEAREST / self.gallery)),
            ('generated: right image is the nearest', self.top1, 1 / self.gallery),
            ('captioned: exact label', self.exact, 1 / self.gallery),
        ]  # fmt: skip
        lines = [f'{"measure":58s} {"rate":>7s} {"95 % interval":>17s} {"chance":>8s}']
        for name, rate, chance in rows:
            if rate is None:
                continue
            low, high = wilson(rate, self.count)
            lines.append(f'{name:58s} {rate:7.1%} {low:7.1%} .. {high:6.1%} {chance:8.2%}')
        if self.too_long:
            lines.append(
                f'{self.too_long} of {self.count} labels have more than {self.longest} tokens and '
                'cannot be answered exactly: raise data.max_text_tokens, or '
                'sampling.max_answer_tokens'
            )
        return '\n'.join(lines)


def wilson(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % confidence interval of a rate over `count` trials."""
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def thumbnails(images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [n, 768] of uint8 images at 16 x 16."""
    small = [image_ops.resize(image, SIDE, SIDE) for image in images]
    return np.stack(small).reshape(len(small), -1).astype(np.float32)


def ranks(generated: np.ndarray, gallery: np.ndarray, truth: Sequence[int]) -> np.ndarray:
    """Rank (0: nearest) of gallery[truth[i]] for each generated[i], both float32 [., 768]."""
    mean = gallery.mean(0)

    def unit(x):
        x = x - mean
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)

    cosine = unit(generated) @ unit(gallery).T
    right = cosine[np.arange(len(truth)), truth]
    return (cosine > right[:, None]).sum(1)


def readable(source, numbers: Iterable[int], count: int) -> dict[int, np.ndarray]:
    """The first `count` images that can be decoded, by number."""
    images: dict[int, np.ndarray] = {}
    for i in numbers:
        if len(images) == count:
            break
        with contextlib.suppress(image_ops.BadImage):
            images[int(i)] = source.image(int(i))
    return images


def evaluate(sampler: Sampler, source, count: int, seed: int) -> Result:
    """Generates and captions `count` random images of a source, with new noise.

    Raises UserError if no image of the source can be read.
    """
    numbers = source_list.with_image(source)
    numbers = numbers[:: max(1, -(-len(numbers) // _CHOSEN_FROM))]
    order = generator(seed, 'evaluation').permutation(np.asarray(numbers, int))
    truth = readable(source, order, count)
    if not truth:
        raise UserError(f'{source.name}: none of its {len(source)} images can be read')
    others = (i for i in order[:GALLERY].tolist() if i not in truth)
    gallery = [thumbnails([image]) for image in truth.values()]
    for i in others:
        gallery += [thumbnails([image]) for image in readable(source, [i], 1).values()]
    labels = [source.record(i).captions[0] for i in truth]
    sizes = [fitting.image_size(*p.shape[:2], sampler.config) for p in truth.values()]
    tasks = sampler.config.data.tasks
    generated, answers, top1, top10, exact = [], [], None, None, None
    too_long, longest = 0, captions.longest_answer(sampler.config, sampler.tokenizer)
    if tasks.get('text_to_image', 0) > 0:
        generated = [
            each.image for each in sampler.generate(labels, seed=seed + 1, size=sizes, number=0)
        ]
        rank = ranks(thumbnails(generated), np.concatenate(gallery), range(len(truth)))
        top1, top10 = float((rank == 0).mean()), float((rank < NEAREST).mean())
    if tasks.get('image_to_text', 0) > 0:
        answers = sampler.caption(list(truth.values()))
        accepted = [source.record(i).captions for i in truth]
        too_long = sum(captions.too_long(sampler.tokenizer, true, longest) for true in accepted)
        if too_long < len(truth):
            exact = float(np.mean([a in true for a, true in zip(answers, accepted)]))
    return Result(
        count=len(labels),
        gallery=len(gallery),
        top1=top1,
        top10=top10,
        exact=exact,
        labels=labels,
        generated=generated,
        truth=list(truth.values()),
        answers=answers,
        too_long=too_long,
        longest=longest,
    )
