"""The judge: detects the objects of an image from its pixels, and decides whether a claim holds.

It estimates the ground and the colour of each pixel, finds connected pieces of one colour, and for
each piece the shape whose rendering explains its pixels best. Its thresholds were set on true
renderings only, never on generated images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rf_jax.scenes import claims, templates
from rf_jax.scenes.world import COLOURS

_FINE = 32  # pixels per side; larger images are averaged down to it
_PRESENT = 0.35  # fraction of a colour's strength above which a pixel counts as painted
_STRICTER = (0.5, 0.65, 0.8)  # tried if two objects of one colour seem to have merged
_LEAST = 0.003  # smaller pieces, as fractions of the image, are not objects
_SPECK = 0.0075  # nor are pieces smaller than this that no shape explains
_ALONG = 0.5  # nor pieces with more than this fraction of pixels touching larger ones
_MOST = 8  # largest pieces whose shape is searched for; only noise has more
_NOISE = 16  # largest standard deviation of noise, of 255, that is compensated
_RADII = (0.085, 0.17)  # smallest and largest radius of an object, as fractions of the side
_WIDEST = 0.34  # widest object, as a fraction of the side: pieces that fit into it are one object
# Fraction of an object's energy that a shape must explain to be named. 99.9 % of true renderings
# have more than 0.91, also with mild blur and noise, or with a quarter of the colour lost.
_EXPLAINED = 0.9
_VISIBLE = 0.3  # fraction of the pixels on and around an object that must not touch another
_NAMES = tuple(COLOURS)
_PAINT = np.array(list(COLOURS.values()), np.float32)
_WHITE = _NAMES.index('white')


@dataclass(frozen=True)
class Detection:
    """An object in an image; `x`, `y` centre and `radius` as fractions of the side.

    `shape` is None if no shape explains its pixels; `confidence` is the fraction of their energy
    that the best shape explains, in [0, 1].
    """

    shape: str | None
    colour: str
    x: float
    y: float
    radius: float
    confidence: float


def accepts(claim: claims.Claim, image: np.ndarray) -> bool:
    """Whether the image, uint8 [s, s, 3], satisfies the claim."""
    return claims.holds(claim, detect(image))


def detect(image: np.ndarray) -> list[Detection]:
    """The objects of an image, uint8 [s, s, 3]; raises ValueError for anything else."""
    if image.ndim != 3 or image.shape != (len(image),) * 2 + (3,):
        raise ValueError(f'expected a square image [s, s, 3], not {list(image.shape)}')
    if image.dtype != np.uint8:
        raise ValueError(f'expected a uint8 image, not {image.dtype}')
    pixels = reduced(image)
    colour, strength = _colours(pixels)
    ground = _ground(pixels, colour >= 0)
    change = pixels - ground[..., None]
    bare = change[~_dilated(colour >= 0)]
    noise = min(float(np.median(abs(bare))) * 1.4826, _NOISE) ** 2 if bare.size else 0.0
    pieces, crumbs = _objects(colour, strength)
    owner = np.full(colour.shape, -1)
    for number, piece in enumerate(pieces):
        owner[piece] = number
    found = []
    for number, piece in enumerate(pieces[:_MOST]):
        own = colour[piece][0]
        weight = ~(_dilated((owner >= 0) & (owner != number)) | crumbs)
        view = templates.View(change, ground, weight.astype(np.float32), _PAINT[own], noise)
        each = _recognised(view, piece, strength, _NAMES[own])
        if each.shape or _share(piece, strength) >= _SPECK:
            found.append(each)
    return found + [_unnamed(piece, colour) for piece in pieces[_MOST:]]


def matched(objects: Sequence, found: Sequence[Detection], within: float) -> int:
    """How many of the objects are found again: by shape and colour, each with the nearest centre,
    at most `within` away (a fraction of the side). A detection counts once.
    """
    left, count = list(found), 0
    for each in objects:
        same = [d for d in left if (d.shape, d.colour) == (each.shape, each.colour)]
        near = min(same, key=lambda d: math.hypot(d.x - each.x, d.y - each.y), default=None)
        if near is not None and math.hypot(near.x - each.x, near.y - each.y) <= within:
            left.remove(near)
            count += 1
    return count


def f1_of_objects(objects: Sequence, found: Sequence[Detection]) -> float:
    """Harmonic mean of the shares of both that match; centres are at most a sixth of the side
    apart, half a place.
    """
    return 2 * matched(objects, found, 1 / 6) / max(len(objects) + len(found), 1)


def reduced(image: np.ndarray) -> np.ndarray:
    """float32 [s, s, 3]; a larger image is averaged down to `_FINE` pixels per side."""
    size = len(image)
    if size <= _FINE:
        return image.astype(np.float32)
    edges = np.arange(_FINE + 1) * size / _FINE
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(1, size + 1))
    share = (np.clip(high - low, 0, 1) * _FINE / size).astype(np.float32)
    rows = np.tensordot(share, image.astype(np.float32), (1, 0))
    return np.einsum('js,isc->ijc', share, rows, optimize=True)


def _colours(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(index of each pixel's colour, -1 on the ground; its strength in [0, 1]), both [s, s]."""
    grey = pixels.mean(-1)
    chroma = _PAINT - _PAINT.mean(-1, keepdims=True)
    length = np.maximum(np.linalg.norm(chroma, axis=-1), 1e-3)
    along = (pixels - grey[..., None]) @ (chroma / length[:, None]).T
    along[..., _WHITE] = 0
    colour = along.argmax(-1)
    strength = along.max(-1) / length[colour]
    plain = strength <= _PRESENT
    level = np.median(grey[plain]) if plain.any() else 0.0
    white = (grey - level) / max(_PAINT[_WHITE].mean() - level, 1.0)
    colour = np.where(plain, np.where(white > _PRESENT, _WHITE, -1), colour)
    return colour, np.where(plain, np.maximum(white, 0), strength)


def _ground(pixels: np.ndarray, painted: np.ndarray) -> np.ndarray:
    """float32 [s, s]: grey level of the ground, interpolated smoothly under painted pixels."""
    size, grey = len(pixels), pixels.mean(-1)
    bare = (~_dilated(painted)).astype(np.float32)
    away = np.subtract.outer(np.arange(size), np.arange(size)) / size
    ground, known = np.zeros_like(bare), np.zeros_like(bare)
    # The narrow kernel where there is ground nearby, the wide ones elsewhere.
    for width, trust in ((0.03, 1.0), (0.1, 1e-3), (1.0, 1e-6)):
        kernel = np.exp(-0.5 * (away / width) ** 2).astype(np.float32)
        ground += trust * (kernel @ (bare * grey) @ kernel)
        known += trust * (kernel @ bare @ kernel)
    return ground / np.maximum(known, 1e-9)


def _dilated(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    grown = tall.copy()
    grown[:, 1:] |= tall[:, :-1]
    grown[:, :-1] |= tall[:, 1:]
    return grown


Piece = tuple[np.ndarray, np.ndarray]  # rows and columns of its pixels


def _objects(colour: np.ndarray, strength: np.ndarray) -> tuple[list[Piece], np.ndarray]:
    """(pieces that are objects, mask of the pixels of all others).

    Where two objects touch, their colours mix into a sliver of a third colour.
    """
    size = len(colour)
    pieces = [part for piece in _pieces(colour) for part in _split(piece, colour, strength)]
    pieces = _merged(pieces, colour, size)
    taken, crumbs = np.zeros(colour.shape, bool), np.zeros(colour.shape, bool)
    objects = []
    for piece in sorted(pieces, key=lambda piece: -_share(piece, strength)):
        sliver = _dilated(taken)[piece].mean() > _ALONG
        if sliver or _share(piece, strength) < _LEAST:
            crumbs[piece] = True
        else:
            objects.append(piece)
            taken[piece] = True
    return objects, crumbs


def _share(piece: Piece, strength: np.ndarray) -> float:
    """Fraction of the image that the piece covers."""
    return float(strength[piece].clip(0, 1).sum() / strength.size)


def _pieces(colour: np.ndarray) -> list[Piece]:
    """Connected components of one colour, with 4-connectivity."""
    size = len(colour)
    wide = np.pad(colour, 1, constant_values=-1)
    stride = size + 2
    flat = wide.ravel().tolist()
    found = []
    for start in np.flatnonzero(wide >= 0).tolist():
        own = flat[start]
        if own < 0:
            continue
        flat[start], todo, piece = -1, [start], []
        while todo:
            at = todo.pop()
            piece.append(at)
            for near in (at - 1, at + 1, at - stride, at + stride):
                if flat[near] == own:
                    flat[near] = -1
                    todo.append(near)
        rows, columns = np.divmod(np.array(piece), stride)
        found.append((rows - 1, columns - 1))
    return found


def _sides(piece: Piece) -> tuple[int, int]:
    return tuple(int(np.ptp(along)) + 1 for along in piece)


def _split(piece: Piece, colour, strength, stricter=_STRICTER) -> list[Piece]:
    """The piece, or its parts if it is wider than an object and falls apart at thin bridges."""
    size = len(colour)
    if not stricter or max(_sides(piece)) <= _WIDEST * size:
        return [piece]
    alone = np.full_like(colour, -1)
    alone[piece] = np.where(strength[piece] > stricter[0], 0, -1)
    parts = [part for part in _pieces(alone) if len(part[0]) >= _LEAST * size * size]
    if len(parts) < 2:
        parts = [piece]
    return [each for part in parts for each in _split(part, colour, strength, stricter[1:])]


def _merged(pieces: list[Piece], colour: np.ndarray, size: int) -> list[Piece]:
    """Merges pieces of one colour that fit into one object: dark stripes can look like ground."""
    pieces = sorted(pieces, key=lambda piece: -len(piece[0]))
    merged: list[Piece] = []
    for piece in pieces:
        for i, other in enumerate(merged):
            if colour[piece][0] == colour[other][0]:
                both = tuple(np.concatenate(along) for along in zip(other, piece))
                if max(_sides(both)) <= _WIDEST * size:
                    merged[i] = both
                    break
        else:
            merged.append(piece)
    return merged


def _recognised(view: templates.View, piece: Piece, strength: np.ndarray, colour: str) -> Detection:
    """The object of a piece, by the template that explains it best."""
    size = len(strength)
    rows, columns = piece
    soft = np.zeros_like(strength)
    soft[piece] = strength[piece].clip(0, 1)
    radius = (soft.max(0).sum() + soft.max(1).sum()) / 4
    x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    best, explained = templates.fit(view, x, y, radius, [size * each for each in _RADII])
    at = np.arange(size) + 0.5
    near = np.hypot(at - best.x, at[:, None] - best.y) < best.radius + 1
    clear = explained >= _EXPLAINED and view.weight[near].mean() >= _VISIBLE
    shape = best.shape if clear else None
    return Detection(shape, colour, best.x / size, best.y / size, best.radius / size, explained)


def _unnamed(piece: Piece, colour: np.ndarray) -> Detection:
    y, x = ((float(along.mean()) + 0.5) / len(colour) for along in piece)
    radius = max(_sides(piece)) / 2 / len(colour)
    return Detection(None, _NAMES[colour[piece][0]], x, y, radius, 0.0)
