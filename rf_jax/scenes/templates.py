"""The judge's templates: which shape and texture, where and how large, explains these pixels?

A template gives, for each pixel, how much of it the object covers (cover) and how bright its paint
is (paint = cover x shade). On a grey ground g, a colour C then renders as paint C + (1 - cover) g.

First comes a coarse search over all shapes, textures, radii and places at once: the squared error
is linear in (paint, cover, paint², paint cover, cover²), so one product of a bank of these features
with five maps of the image gives all errors. Then the few best are refined by Gauss-Newton.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from rf_jax.scenes import render
from rf_jax.scenes.world import SHAPES, TEXTURES

_GROWTH = 1.12  # ratio of one radius of the bank to the previous one
_OFFSETS = (-1 / 3, 0.0, 1 / 3)  # of an object's centre from the centre of its pixel
_RADII = (-1, 0, 1, 2)  # steps around the guess that are tried
_ROUNDS = 4  # times that the search may move on while the error still falls
_SOFT = 0.15  # variance of the blur of the bank, in pixels²: between sharp and mild
_SOFTEST = 0.7  # largest variance of a fit
_RIVALS = 5  # number of best shapes and textures that are refined
# One Gauss-Newton step each; before it, candidates whose error exceeds the best one by more than
# this fraction of the object's energy are dropped.
_BEHIND = (0.2, 0.08, 0.04, 0.04)
_PALER = 60  # largest deviation of a channel from the nominal colour
_CHANGE = np.array([0.1, 0.1, 0.05, 0.05])  # for derivatives: x, y, radius (relative), blur
_LONGEST = np.array([0.4, 0.4, 0.12, 0.3])  # longest step


@dataclass(frozen=True)
class View:
    """What a template is compared with.

    change float32 [h, w, 3]: the image minus its ground; ground float32 [h, w]; weight float32
    [h, w], 0 at pixels of other objects; colour float32 [3]; noise: variance of the bare ground.
    """

    change: np.ndarray
    ground: np.ndarray
    weight: np.ndarray
    colour: np.ndarray
    noise: float = 0.0

    def window(self, column: int, row: int, half: int) -> 'View':
        """A window of 2 half + 1 pixels per side around a pixel; weight 0 outside the image."""

        def crop(values):
            pad = [(half, half)] * 2 + [(0, 0)] * (values.ndim - 2)
            return np.pad(values, pad)[row : row + 2 * half + 1, column : column + 2 * half + 1]

        return replace(
            self, change=crop(self.change), ground=crop(self.ground), weight=crop(self.weight)
        )

    def maps(self) -> np.ndarray:
        """float32 [5, h, w]: a template changes the error by its features times these."""
        return np.stack(
            [
                -2 * self.weight * (self.change @ self.colour),
                2 * self.weight * self.ground * self.change.sum(-1),
                self.weight * (self.colour @ self.colour),
                -2 * self.weight * self.ground * self.colour.sum(),
                3 * self.weight * self.ground**2,
            ]
        ).astype(np.float32)

    def energy(self) -> float:
        """Squared error without any object."""
        return float((self.weight[..., None] * self.change**2).sum())

    def painted(self, paint: np.ndarray, veiled: np.ndarray) -> np.ndarray:
        """The best colour near the nominal one; paint and veiled (cover x ground): [h, w]."""
        weighted = self.weight * paint
        best = np.tensordot(weighted, self.change + veiled[..., None], 2)
        best = best / max(float((weighted * paint).sum()), 1e-6)
        return np.clip(best, self.colour - _PALER, self.colour + _PALER)

    def explained(self, left: float) -> float:
        """Fraction of the energy above the noise that is explained if the error `left` remains."""
        floor = 3 * self.noise * float(self.weight.sum())
        return min(max(1 - max(left - floor, 0.0) / max(self.energy() - floor, 1e-6), 0.0), 1.0)


@dataclass(frozen=True)
class Fit:
    """A placed template: x, y, radius in pixels, soft in pixels², `left` the remaining error."""

    shape: str
    texture: str
    x: float
    y: float
    radius: float
    soft: float
    left: float


def fit(view: View, x: float, y: float, radius: float, limits=(1.0, 1e3)) -> tuple[Fit, float]:
    """(the best template near a guess, fraction of the energy there that it explains).

    All in pixels; limits: the smallest and largest radius.
    """
    radius, best = np.clip(radius, *limits), None
    for _ in range(_ROUNDS):
        found, edge = _search(view, math.floor(x), math.floor(y), radius, limits)
        if best is not None and found[0].left >= best[0].left:
            break
        best = found
        height, width = view.weight.shape
        x, y = np.clip(best[0].x, 0, width - 1), np.clip(best[0].y, 0, height - 1)
        radius = best[0].radius
        if not edge:
            break
    half = math.ceil(1.25 * max(each.radius for each in best) + 1)
    left, top = math.floor(x) - half, math.floor(y) - half
    window = view.window(left + half, top + half, half)
    moved = [replace(each, x=each.x - left, y=each.y - top) for each in best]
    finest = _finest(window, moved, limits)
    placed = replace(finest, x=finest.x + left, y=finest.y + top)
    return placed, window.explained(finest.left)


def _finest(view: View, rivals: list[Fit], limits) -> Fit:
    """The best candidate after refining step by step, dropping hopeless ones on the way."""
    best, energy = None, view.energy()
    for behind in _BEHIND:
        least = min(each.left for each in rivals)
        rivals = [each for each in rivals if each.left - least <= behind * energy]
        pairs = [_step(view, each, limits) for each in rivals]
        best = min([here for here, _ in pairs] + [best] * (best is not None), key=_left)
        rivals = [after for _, after in pairs]
    return best


def _left(each: Fit) -> float:
    return each.left


def _render(shape: str, texture: str, n: int, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(paint, cover) [k, n, n] for `where` [k, 4]: x, y, radius and blur of each."""
    x, y, radius, soft = (values[:, None, None] for values in where.T)
    at = np.arange(n) + 0.5
    u, v = (at[None, None, :] - x) / radius, (at[None, :, None] - y) / radius
    cover = render.coverage(shape, u, v, radius)
    paint = cover if texture == 'plain' else cover * render.shade(texture, u, v)
    # A kernel of three taps applied twice: total variance `soft`.
    blur = np.eye(n) + soft / 4 * (np.eye(n, k=1) + np.eye(n, k=-1) - 2 * np.eye(n))
    blur = blur @ blur
    soft_cover = blur @ cover @ blur
    return (soft_cover if paint is cover else blur @ paint @ blur), soft_cover


@functools.lru_cache(maxsize=256)
def _bank(step: int, half: int) -> tuple[np.ndarray, list[tuple[str, str, float, float]]]:
    """(features float32 [templates, 5 n n], (shape, texture, dx, dy) of each), n = 2 half + 1.

    All of radius `_GROWTH`**step pixels.
    """
    n = 2 * half + 1
    places = list(itertools.product(_OFFSETS, _OFFSETS))
    middle, radius = half + 0.5, _GROWTH**step
    where = np.array([(middle + dx, middle + dy, radius, _SOFT) for dx, dy in places])
    features, names = [], []
    for shape, texture in itertools.product(SHAPES, TEXTURES):
        paint, cover = _render(shape, texture, n, where)
        features.append(np.stack([paint, cover, paint**2, paint * cover, cover**2], 1))
        names += [(shape, texture, dx, dy) for dx, dy in places]
    return np.concatenate(features).reshape(len(names), -1).astype(np.float32), names


def _search(view: View, column: int, row: int, radius: float, limits) -> tuple[list[Fit], bool]:
    """(the best shapes and textures within one pixel, whether the best is on the search border)."""
    step = round(math.log(radius, _GROWTH))
    half = math.ceil(_GROWTH ** (step + _RADII[-1]) + 1)
    n = 2 * half + 1
    window = view.window(column, row, half + 1)
    shifted = np.lib.stride_tricks.sliding_window_view(window.maps(), (n, n), (1, 2))
    data = shifted.transpose(0, 3, 4, 1, 2).reshape(-1, 9)
    low, high = (math.log(limit, _GROWTH) for limit in limits)
    steps = [step + each for each in _RADII if low - 0.5 <= step + each <= high + 0.5]
    errors = np.stack([_bank(each, half)[0] @ data for each in steps])
    names = _bank(steps[0], half)[1]
    # [shape and texture, radius, place, shift]
    errors = errors.reshape(len(steps), -1, len(_OFFSETS) ** 2, 9).transpose(1, 0, 2, 3)
    flat, energy = errors.reshape(len(errors), -1), window.energy()
    best, left = flat.argmin(1), flat.min(1) + energy
    fits, edge = [], False
    for kind in left.argsort()[:_RIVALS].tolist():
        place = np.unravel_index(best[kind], errors.shape[1:])
        scale, offset, shift = (int(each) for each in place)
        shape, texture, dx, dy = names[kind * len(_OFFSETS) ** 2 + offset]
        down, right = shift // 3 - 1, shift % 3 - 1
        if not fits:
            edge = bool(down or right or scale in (0, len(steps) - 1))
        at = (column + right + dx + 0.5, row + down + dy + 0.5)
        fits.append(Fit(shape, texture, *at, _GROWTH ** steps[scale], _SOFT, float(left[kind])))
    return fits, edge


def _step(view: View, at: Fit, limits) -> tuple[Fit, Fit]:
    """(the fit with its error, the next Gauss-Newton iterate, still with that error)."""
    root = np.sqrt(view.weight)[..., None]
    now = np.array([at.x, at.y, at.radius, at.soft])
    scale = np.array([1.0, 1.0, at.radius, 1.0])
    where = now + np.concatenate([np.zeros((1, 4)), np.diag(_CHANGE * scale)])
    paint, cover = _render(at.shape, at.texture, len(root), where)
    veiled = cover * view.ground
    own = view.painted(paint[0], veiled[0])
    made = paint[..., None] * own - veiled[..., None]
    error = (root * (view.change - made[0])).ravel()
    left = float(error @ error)
    slope = (root * (made[1:] - made[0])).reshape(4, -1) / _CHANGE[:, None]
    square = slope @ slope.T
    square[np.diag_indices(4)] *= 1.01
    square[np.diag_indices(4)] += 1e-3
    move = np.clip(np.linalg.solve(square, slope @ error), -_LONGEST, _LONGEST)
    x, y, radius, soft = (now + move * scale).tolist()
    after = replace(
        at,
        x=x,
        y=y,
        radius=min(max(radius, limits[0]), limits[1]),
        soft=min(max(soft, 0.0), _SOFTEST),
        left=left,
    )
    return replace(at, left=left), after
