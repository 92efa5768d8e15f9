"""render.MAPS: depth, boundaries and regions as images, against a pixel-by-pixel construction."""

from dataclasses import replace

import numpy as np
import pytest

from rf_jax.scenes import render, world

SIZE = 40


def scenes(rung, count=12):
    return [world.make(11, i, world.RUNGS[rung]) for i in range(count)]


def inside(each, row, column):
    """Whether a pixel's centre is inside the object (the shapes' own distance, one pixel)."""
    u, v = (((p + 0.5) / SIZE - c) / each.radius for p, c in ((column, each.x), (row, each.y)))
    cover = render.coverage(each.shape, np.float32([[u]]), np.float32([[v]]), each.radius * SIZE)
    return cover[0, 0] > 0.5


def owners(scene):
    """int [SIZE, SIZE]: number of the nearest object at each pixel, -1 for the ground."""
    found = np.full((SIZE, SIZE), -1)
    for row in range(SIZE):
        for column in range(SIZE):
            for number, each in enumerate(scene.objects):
                if inside(each, row, column):
                    found[row, column] = number
    return found


@pytest.mark.parametrize('rung', ['aligned', 'crowded'])
def test_boundaries_and_regions_pixel_by_pixel(rung):
    for scene in scenes(rung, 4):
        number = owners(scene)
        boundary, regions = render.boundary_map(scene, SIZE), render.region_map(scene, SIZE)
        assert boundary.shape == regions.shape == (SIZE, SIZE, 3)
        assert boundary.dtype == regions.dtype == np.uint8
        reading = sorted(scene.objects, key=lambda o: (o.y, o.x))
        for row in range(SIZE):
            for column in range(SIZE):
                own = number[row, column]
                beside = [
                    number[r, c]
                    for r, c in ((row - 1, column), (row + 1, column), (row, column - 1),
                                 (row, column + 1))
                    if 0 <= r < SIZE and 0 <= c < SIZE
                ]  # fmt: skip
                edge = own >= 0 and any(other != own for other in beside)
                assert boundary[row, column].tolist() == [255 * edge] * 3
                place = reading.index(scene.objects[own]) if own >= 0 else None
                colour = (0, 0, 0) if place is None else render.PALETTE[place]
                assert tuple(regions[row, column]) == colour


def test_nearer_is_brighter_and_lower():
    for scene in scenes('aligned'):
        depth, number = render.depth_map(scene, SIZE), render.segmentation(scene, SIZE)
        assert (depth[number == 0] == 0).all() and (depth[..., 0] == depth[..., 2]).all()
        for i, each in enumerate(scene.objects, 1):
            assert np.unique(depth[number == i]).tolist() == [
                round(255 * (1 - 0.75 * (1 - each.y)))
            ]


def test_an_object_that_hides_another_is_nearer():
    """Even if it is higher up."""
    low, high = (world.Object('circle', 'red', 'large', 'plain', 0.5, y, 0.2) for y in (0.6, 0.4))
    for objects in ((low, high), (high, low)):
        scene = world.Scene(objects, 'dark', 0, 'pair')
        depth, number = render.depth_map(scene, SIZE)[..., 0], owners(scene)
        far, near = (np.unique(depth[number == i]) for i in (0, 1))
        assert len(far) == len(near) == 1 and 0 < far[0] < near[0]


def test_maps_do_not_depend_on_the_order_of_objects_that_do_not_overlap():
    """What cannot be seen cannot be learned."""
    for scene in scenes('aligned'):
        turned = replace(scene, objects=scene.objects[::-1])
        for make in render.MAPS.values():
            np.testing.assert_array_equal(make(scene, SIZE), make(turned, SIZE))


def test_the_colours_suffice():
    assert len(set(render.PALETTE)) == len(render.PALETTE)
    assert len(render.PALETTE) == max(most for _, most in world.COUNTS.values())
