"""Scenes to pixels, depth and segmentation, at any size: exact edges, no supersampling.

`MAPS` has depth and segmentation as images. All of them can be seen in the rendered image: nothing
depends on the order of objects that do not overlap.
"""

import numpy as np

from rf_jax.scenes.world import COLOURS, GROUNDS, Object, Scene

_DARKER = 0.5  # brightness of the dark stripes and checks of a texture
_CLUTTER = 26  # grey levels by which a cluttered ground varies
_FARTHEST = 0.75  # depth of an object at the upper border, where the ground is 1
_OVER = 0.8  # depth of an object relative to one that it hides in part, at most
# Colours of regions, in reading order of the objects; there are at most six.
PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))


def render(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    canvas = _ground(scene, size)
    for each in scene.objects:
        window, u, v = _window(each, size)
        cover = coverage(each.shape, u, v, each.radius * size)[..., None]
        colour = np.asarray(COLOURS[each.colour], np.float32)
        paint = colour * shade(each.texture, u, v)[..., None]
        canvas[window] += cover * (paint - canvas[window])
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def segmentation(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size]: 0 for the ground, i + 1 where object i is visible."""
    found = np.zeros((size, size), np.uint8)
    for number, each in enumerate(scene.objects, 1):
        window, u, v = _window(each, size)
        found[window][coverage(each.shape, u, v, each.radius * size) > 0.5] = number
    return found


def depth(scene: Scene, size: int) -> np.ndarray:
    """float32 [size, size]: 1 for the ground, smaller for nearer objects, above 0.

    As on a floor that is seen from above, an object is nearer the lower in the image its centre is;
    one that hides part of another is nearer than that.
    """
    found = np.ones((size, size), np.float32)
    for each in scene.objects:
        window, u, v = _window(each, size)
        inside = coverage(each.shape, u, v, each.radius * size) > 0.5
        beneath = found[window][inside]
        hidden = beneath[beneath < 1].min(initial=1.0)
        own = _FARTHEST * (1 - each.y)
        found[window][inside] = min(own, _OVER * hidden)
    return found


def depth_map(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size, 3] in grey: 0 for the ground, brighter for nearer objects, as
    Depth-Anything has it.
    """
    return _grey(np.rint(255 * (1 - depth(scene, size))))


def boundary_map(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: white outlines of what is visible of each object, else black.

    A pixel of an object is on its outline if one of the four beside it is not of the object. Where
    two objects meet, both have theirs.
    """
    numbers = segmentation(scene, size)
    edge = np.zeros(numbers.shape, bool)
    down, across = numbers[1:] != numbers[:-1], numbers[:, 1:] != numbers[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return _grey(np.where(edge & (numbers > 0), 255, 0))


def region_map(scene: Scene, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: what is visible of each object in a colour of `PALETTE`, from the
    top to the bottom and from the left to the right; the ground is black.
    """
    objects = scene.objects
    colours = np.zeros((len(objects) + 1, 3), np.uint8)
    order = sorted(range(len(objects)), key=lambda i: (objects[i].y, objects[i].x))
    for colour, number in zip(PALETTE, order):
        colours[number + 1] = colour
    return colours[segmentation(scene, size)]


MAPS = {'depth': depth_map, 'segmentation': boundary_map, 'regions': region_map}


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, 2)


def coverage(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Fraction of each pixel that the shape covers, in [0, 1].

    u, v: offsets right and down from its centre, in radii; radius in pixels.
    """
    return np.clip(0.5 - _DISTANCE[shape](u, v) * radius, 0, 1)


def _circle(u, v):
    return np.hypot(u, v) - 1.0


def _square(u, v):
    return np.maximum(abs(u), abs(v)) - 0.9


def _triangle(u, v):
    sides = (1.9 * abs(u) - (v + 1.0)) / np.hypot(1.9, 1.0)
    return np.maximum(sides, v - 0.9)


def _cross(u, v):
    u, v = abs(u), abs(v)
    return np.minimum(np.maximum(u - 1.0, v - 0.34), np.maximum(u - 0.34, v - 1.0))


def _ring(u, v):
    return abs(np.hypot(u, v) - 0.74) - 0.26


def _diamond(u, v):
    return (abs(u) + abs(v) - 1.0) * 2**-0.5


# Signed distance from the outline in radii, negative inside.
_DISTANCE = {
    'circle': _circle,
    'square': _square,
    'triangle': _triangle,
    'cross': _cross,
    'ring': _ring,
    'diamond': _diamond,
}


def _window(each: Object, size: int):
    """(slices of the pixels that the object may touch, their u and v)."""
    reach = each.radius + 1.0 / size

    def along(centre):
        first = max(0, int((centre - reach) * size))
        last = min(size, int((centre + reach) * size) + 1)
        return slice(first, last), ((np.arange(first, last) + 0.5) / size - centre) / each.radius

    rows, v = along(each.y)
    columns, u = along(each.x)
    return (rows, columns), u[None, :].astype(np.float32), v[:, None].astype(np.float32)


def shade(texture: str, u, v) -> np.ndarray:
    """Factor on the colour, [h, w]."""
    if texture == 'plain':
        return np.ones((v.shape[0], u.shape[1]), np.float32)
    wave = np.sin(4.5 * (u + v)) if texture == 'striped' else np.sin(5 * u) * np.sin(5 * v) * 1.5
    return 1 - (1 - _DARKER) * np.clip(0.5 + 2 * wave, 0, 1)


def _ground(scene: Scene, size: int) -> np.ndarray:
    """float32 [size, size, 3]: one grey level, or one that varies smoothly around it."""
    grey = np.full((size, size), GROUNDS[scene.ground], np.float32)
    if scene.clutter:
        rng = np.random.default_rng(scene.clutter)
        at = (np.arange(size) + 0.5) / size * 2 * np.pi
        for frequency in (1.0, 2.0, 4.0):
            across, down, phase = rng.uniform(-frequency, frequency, 3)
            wave = np.sin(across * at[None, :] + down * at[:, None] + 4 * phase)
            grey += _CLUTTER / 3 * wave.astype(np.float32)
    return np.repeat(np.clip(grey, 0, 255)[..., None], 3, 2)
