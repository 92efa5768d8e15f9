"""The judge: finds the objects of a scene in its pixels alone, and says whether a claim holds.

Ground, colour of each pixel, connected pieces of a colour, and of each piece the shape whose
rendering explains its pixels best. Fixed by true renderings only, never by what a model draws.
"""

from dataclasses import dataclass

import numpy as np

from rf_jax.scenes import claims, templates
from rf_jax.scenes.world import COLOURS

_FINE = 32  # pixels a side; larger pictures are averaged down to it
_PRESENT = 0.35  # share of a colour's strength from which a pixel counts as painted
_STRICTER = (0.5, 0.65, 0.8)  # tried where pieces of one colour seem to have grown together
_LEAST = 0.003  # smaller pieces, in shares of the picture, are no objects
_SPECK = 0.0075  # nor are pieces below this that no shape explains
_ALONG = 0.5  # nor those of which more than this share of pixels touches larger ones
_MOST = 8  # pieces, the largest, whose shape is looked for; more are there in noise only
_NOISE = 16  # standard deviation of noise, of 255, up to which shapes are still named
_RADII = (0.085, 0.17)  # least and greatest of an object, as shares of the side
_WIDEST = 0.34  # of an object, as a share of the side: pieces that fit into it are one object
# Share of an object's energy that its shape must explain to be named. Of true renderings 99.9 %
# have more than 0.91, also with mild blur and noise, or a quarter of their colour lost.
_EXPLAINED = 0.9
_SEEN = 0.3  # share of the pixels on and about an object that must not touch another's
_NAMES = tuple(COLOURS)
_PAINT = np.array(list(COLOURS.values()), np.float32)
_WHITE = _NAMES.index('white')


@dataclass(frozen=True)
class Found:
    """An object in a picture; `x`, `y` centre and `radius` in shares of the side.

    `shape` is None where no shape explains its pixels; `confidence` is the share of their energy
    that the best one does explain, in [0, 1].
    """

    shape: str | None
    colour: str
    x: float
    y: float
    radius: float
    confidence: float


def accepts(claim: claims.Claim, picture: np.ndarray) -> bool:
    """Whether the picture, uint8 [s, s, 3], bears the claim out."""
    return claims.holds(claim, find(picture))


def find(picture: np.ndarray) -> list[Found]:
    """The objects of a picture, uint8 [s, s, 3]; raises ValueError for anything else."""
    if picture.ndim != 3 or picture.shape != (len(picture),) * 2 + (3,):
        raise ValueError(f'a square picture [s, s, 3] is judged, not {list(picture.shape)}')
    if picture.dtype != np.uint8:
        raise ValueError(f'a picture of uint8 is judged, not of {picture.dtype}')
    pixels = reduced(picture)
    colour, strength = _colours(pixels)
    ground = _ground(pixels, colour >= 0)
    change = pixels - ground[..., None]
    bare = change[~_grown(colour >= 0)]
    noise = min(float(np.median(abs(bare))) * 1.4826, _NOISE) ** 2 if bare.size else 0.0
    pieces, crumbs = _objects(colour, strength)
    owner = np.full(colour.shape, -1)
    for number, piece in enumerate(pieces):
        owner[piece] = number
    found = []
    for number, piece in enumerate(pieces[:_MOST]):
        own = colour[piece][0]
        weight = ~(_grown((owner >= 0) & (owner != number)) | crumbs)
        view = templates.View(change, ground, weight.astype(np.float32), _PAINT[own], noise)
        each = _fitted(view, piece, strength, _NAMES[own])
        if each.shape or _share(piece, strength) >= _SPECK:
            found.append(each)
    return found + [_unnamed(piece, colour) for piece in pieces[_MOST:]]


def reduced(picture: np.ndarray) -> np.ndarray:
    """float32 [s, s, 3]; a larger picture averaged over the areas of `_FINE` pixels a side."""
    size = len(picture)
    if size <= _FINE:
        return picture.astype(np.float32)
    edges = np.arange(_FINE + 1) * size / _FINE
    low = np.maximum(edges[:-1, None], np.arange(size))
    high = np.minimum(edges[1:, None], np.arange(1, size + 1))
    share = (np.clip(high - low, 0, 1) * _FINE / size).astype(np.float32)
    rows = np.tensordot(share, picture.astype(np.float32), (1, 0))
    return np.einsum('js,isc->ijc', share, rows, optimize=True)


def _colours(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each pixel's colour, -1 on the ground; its strength in [0, 1]), [s, s] both."""
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
    """float32 [s, s]: grey of the ground, carried on smoothly under what is painted."""
    size, grey = len(pixels), pixels.mean(-1)
    bare = (~_grown(painted)).astype(np.float32)
    away = np.subtract.outer(np.arange(size), np.arange(size)) / size
    ground, known = np.zeros_like(bare), np.zeros_like(bare)
    # The narrow view where there is ground close by, the wide ones elsewhere.
    for width, trust in ((0.03, 1.0), (0.1, 1e-3), (1.0, 1e-6)):
        kernel = np.exp(-0.5 * (away / width) ** 2).astype(np.float32)
        ground += trust * (kernel @ (bare * grey) @ kernel)
        known += trust * (kernel @ bare @ kernel)
    return ground / np.maximum(known, 1e-9)


def _grown(mask: np.ndarray) -> np.ndarray:
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

    Where two objects touch their colours mix, which looks like a sliver of a third colour.
    """
    size = len(colour)
    pieces = [part for piece in _pieces(colour) for part in _apart(piece, colour, strength)]
    pieces = _joined(pieces, colour, size)
    taken, crumbs = np.zeros(colour.shape, bool), np.zeros(colour.shape, bool)
    objects = []
    for piece in sorted(pieces, key=lambda piece: -_share(piece, strength)):
        sliver = _grown(taken)[piece].mean() > _ALONG
        if sliver or _share(piece, strength) < _LEAST:
            crumbs[piece] = True
        else:
            objects.append(piece)
            taken[piece] = True
    return objects, crumbs


def _share(piece: Piece, strength: np.ndarray) -> float:
    """How much of the picture it covers."""
    return float(strength[piece].clip(0, 1).sum() / strength.size)


def _pieces(colour: np.ndarray) -> list[Piece]:
    """Connected pixels of one colour, over their four sides."""
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


def _apart(piece: Piece, colour, strength, stricter=_STRICTER) -> list[Piece]:
    """The piece, or its parts where it is wider than an object and its thin bridges break."""
    size = len(colour)
    if not stricter or max(_sides(piece)) <= _WIDEST * size:
        return [piece]
    alone = np.full_like(colour, -1)
    alone[piece] = np.where(strength[piece] > stricter[0], 0, -1)
    parts = [part for part in _pieces(alone) if len(part[0]) >= _LEAST * size * size]
    if len(parts) < 2:
        parts = [piece]
    return [each for part in parts for each in _apart(part, colour, strength, stricter[1:])]


def _joined(pieces: list[Piece], colour: np.ndarray, size: int) -> list[Piece]:
    """Pieces of a colour that fit into one object are one: dark stripes may look like ground."""
    pieces = sorted(pieces, key=lambda piece: -len(piece[0]))
    joined: list[Piece] = []
    for piece in pieces:
        for i, other in enumerate(joined):
            if colour[piece][0] == colour[other][0]:
                both = tuple(np.concatenate(along) for along in zip(other, piece))
                if max(_sides(both)) <= _WIDEST * size:
                    joined[i] = both
                    break
        else:
            joined.append(piece)
    return joined


def _fitted(view: templates.View, piece: Piece, strength: np.ndarray, colour: str) -> Found:
    """The object that a piece is, by the template that explains it best."""
    size = len(strength)
    rows, columns = piece
    soft = np.zeros_like(strength)
    soft[piece] = strength[piece].clip(0, 1)
    radius = (soft.max(0).sum() + soft.max(1).sum()) / 4
    x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    best, explained = templates.fit(view, x, y, radius, [size * each for each in _RADII])
    at = np.arange(size) + 0.5
    near = np.hypot(at - best.x, at[:, None] - best.y) < best.radius + 1
    clear = explained >= _EXPLAINED and view.weight[near].mean() >= _SEEN
    shape = best.shape if clear else None
    return Found(shape, colour, best.x / size, best.y / size, best.radius / size, explained)


def _unnamed(piece: Piece, colour: np.ndarray) -> Found:
    y, x = ((float(along.mean()) + 0.5) / len(colour) for along in piece)
    radius = max(_sides(piece)) / 2 / len(colour)
    return Found(None, _NAMES[colour[piece][0]], x, y, radius, 0.0)
