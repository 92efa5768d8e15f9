"""Maps that a model draws of new scenes, against the exact ones and against maps that are the same
for every image: the mean of others, and their median, the constant of least error on them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rf_jax.data import fitting, image_ops, maps
from rf_jax.data.messages import user
from rf_jax.evaluation import conversing
from rf_jax.generation.sampler import Sampler
from rf_jax.runtime.rng import generator
from rf_jax.scenes import judge

SHOWN = 6  # images on the sheet
_NEAR = 0.1  # how far, as a fraction of the side, a recovered object may seem to have moved
_WHITE = 128  # of a boundary


@dataclass
class Sheet:
    """Images in rows of `columns`, uint8 [h, w, 3], each with its name."""

    columns: int = 0
    images: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def score(
    sampler: Sampler, source, names: Sequence[str], count: int, seed: int = 0
) -> tuple[dict[str, dict], Sheet]:
    """({map: its values}, a sheet of the first images with their maps and the exact ones).

    The values are lists with a number for each of the first `count` scenes: `drawn`, 1 if the
    answer has an image, else a black one counts; `error`, the mean absolute error in [0, 1];
    `mean` and `median`, those of the mean and the median map of the `count` scenes after these. For
    boundaries also `f1` of their pixels and `mean_f1`, where the mean map is above its mean; for
    reconstructions `recovered`, the share of objects that the judge finds again, and `found`, in
    the true image.
    """
    size = fitting.image_size(source.size, source.size, sampler.config)
    images = [image_ops.resize(source.image(i), *size) for i in range(count)]
    values, columns = {}, [('image', images)]
    for name in names:
        exact = [image_ops.resize(_exact(source, i, name), *size) for i in range(2 * count)]
        exact, others = exact[:count], exact[count:]
        drawn = ask(sampler, images, name, seed)
        black = np.zeros((*size, 3), np.uint8)
        answers = [black if image is None else image_ops.resize(image, *size) for image in drawn]
        mean, median = np.mean(others, 0), np.median(others, 0)
        found = values[name] = {
            'drawn': [int(image is not None) for image in drawn],
            'error': [_error(a, b) for a, b in zip(answers, exact)],
            'mean': [_error(mean, each) for each in exact],
            'median': [_error(median, each) for each in exact],
        }
        if name == 'segmentation':
            found['f1'] = [f1(a >= _WHITE, b >= _WHITE) for a, b in zip(answers, exact)]
            found['mean_f1'] = [f1(mean > mean.mean(), each >= _WHITE) for each in exact]
        if name == 'pixels':
            objects = [source.scene(i).objects for i in range(count)]
            found['recovered'] = [recovered(o, a) for o, a in zip(objects, answers)]
            found['found'] = [recovered(o, a) for o, a in zip(objects, images)]
            columns.append(('drawn again', answers))
        else:
            columns += [(name, answers), (f'exact {name}', exact)]
    sheet = Sheet(len(columns))
    for i in range(min(SHOWN, count)):
        sheet.images += [images[i] for _, images in columns]
        sheet.names += [name for name, _ in columns]
    return values, sheet


def ask(sampler: Sampler, images: Sequence[np.ndarray], name: str, seed: int):
    """What the model draws when asked for a map of each image, uint8 [h, w, 3]; None where the
    answer has no image.
    """
    asked = [
        [user(image, maps.instruction(name, generator('map', name, i)))]
        for i, image in enumerate(images)
    ]
    said = conversing.chat(sampler, asked, seed=seed)
    return [np.asarray(message.images[0]) if message.images else None for message in said]


def _exact(source, i: int, name: str) -> np.ndarray:
    return source.image(i) if name == 'pixels' else source.map(i, name)


def _error(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.mean(np.abs(one.astype(np.float64) - other))) / 255


def f1(found: np.ndarray, true: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the pixels that are set; 1 if none is, in both."""
    total = int(found.sum()) + int(true.sum())
    return 2 * int((found & true).sum()) / total if total else 1.0


def recovered(objects: Sequence, image: np.ndarray) -> float:
    """Share of the objects that the judge detects in the image, with their look and place."""
    return judge.matched(objects, judge.detect(image), _NEAR) / len(objects)


def table(values: Mapping[str, dict]) -> str:
    """The scores as text."""
    lines = [
        f'{"maps":28s} {"asked":>6s} {"drawn":>7s} {"error":>7s} {"mean map":>9s} {"median":>7s}'
    ]
    for name, each in values.items():
        mean = {what: float(np.mean(numbers)) for what, numbers in each.items()}
        line = f'{name:28s} {len(each["drawn"]):6d} {mean["drawn"]:7.1%} {mean["error"]:7.4f} '
        lines.append(f'{line}{mean["mean"]:9.4f} {mean["median"]:7.4f}')
        if 'f1' in mean:
            lines.append(f'  F1 of boundary pixels {mean["f1"]:.3f}, mean map '
                         f'{mean["mean_f1"]:.3f}')  # fmt: skip
        if 'recovered' in mean:
            lines.append(f'  objects recovered {mean["recovered"]:.1%}, in the true images '
                         f'{mean["found"]:.1%}')  # fmt: skip
    return '\n'.join(lines)
