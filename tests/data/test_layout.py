"""layout.py: random rows against the rules of the sequence, spelled out token by token."""

import jax
import numpy as np
import pytest
from random_rows import CAPACITY, CHANNELS, filled, random_row, sees, tokens_of

from rf_jax.data import image_ops, layout
from rf_jax.data.layout import Pixels, Representation, Skip, Text, Vision
from rf_jax.data.patch_grid import group_cells, patch_cells, stored_groups
from rf_jax.models.attention import masks


def streams(row: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Per-token arrays of one stream."""
    ends = np.cumsum([CAPACITY[stream] for stream in layout.STREAMS])
    stop = ends[layout.STREAMS.index(name)]
    where = slice(stop - CAPACITY[name], stop)
    return {key: row[key][where] for key in ('segment', 'order', 'reach', 'block', 'position')}


visible = jax.jit(masks.visible)


@pytest.mark.parametrize('first', range(0, 200, 50))
def test_the_mask_follows_the_spans(first):
    rows = [random_row(seed) for seed in range(first, first + 50)]
    batch = layout.make_batch(rows, CAPACITY, CHANNELS)
    keys = {name: batch[name] for name in ('segment', 'order', 'reach', 'block')}
    given = np.asarray(visible(keys, keys))
    for row, mask in zip(rows, given):
        tokens = tokens_of(row)
        wanted = [[bool(q and k and sees(q, k)) for k in tokens] for q in tokens]
        np.testing.assert_array_equal(mask, wanted)


def test_random_rows_cover_the_cases():
    """Otherwise the test above would prove little."""
    rows = [row for seed in range(200) for row in [random_row(seed)]]
    assert sum(len(row) > 1 for row in rows) > 100
    samples = [sample for row in rows for sample in row]
    drawn = [[span for span in sample if isinstance(span, Pixels)] for sample in samples]
    assert sum(len(pixels) > 1 for pixels in drawn) > 20
    assert sum(not span.reads_representation for pixels in drawn for span in pixels) > 20
    assert sum(span.height != span.width for pixels in drawn for span in pixels) > 20
    assert sum(isinstance(span, Skip) for sample in samples for span in sample) > 20


@pytest.mark.parametrize('seed', range(30))
def test_streams_hold_the_contents_of_the_spans(seed):
    samples = random_row(seed)
    row = filled(samples)
    spans = [span for sample in samples for span in sample]
    text = [span for span in spans if isinstance(span, Text)]
    tokens = np.concatenate([span.tokens for span in text] or [[]])
    targets = np.concatenate([span.targets for span in text] or [[]])
    used = slice(len(tokens))
    np.testing.assert_array_equal(row['text_tokens'][used], tokens)
    np.testing.assert_array_equal(row['text_weight'][used], targets >= 0)
    wanted = targets >= 0
    np.testing.assert_array_equal(row['text_targets'][used][wanted], targets[wanted])
    assert not row['text_weight'][len(tokens) :].any()
    for kind, stream in ((Pixels, 'pixel'), (Vision, 'vision')):
        at = 0
        images = [span for span in spans if isinstance(span, kind)]
        for number, span in enumerate(images):
            where = slice(at, at + span.height * span.width)
            at = where.stop
            pixels = row['pixels' if stream == 'pixel' else 'vision_pixels']
            np.testing.assert_array_equal(pixels[where], span.pixels)
            np.testing.assert_array_equal(row[f'{stream}_image'][where], number)
            assert row[f'{stream}_counts'][number] == span.height * span.width
        assert (row[f'{stream}_image'][at:] == -1).all()
        assert (row[f'{stream}_counts'][len(images) :] == 0).all()
        if stream == 'pixel':
            np.testing.assert_array_equal(row['pixel_weight'], np.arange(48) < at)


@pytest.mark.parametrize('seed', range(30))
def test_a_packed_row_holds_what_its_examples_hold_alone(seed):
    """Earlier examples in the row shift the numbers of an example and nothing else."""
    samples = random_row(seed)
    row, at = filled(samples), np.zeros(len(layout.SIZES), int)
    for number, sample in enumerate(samples):
        alone, size = filled([sample]), layout.size(sample)
        for index, name in enumerate(layout.STREAMS):
            together, single = streams(row, name), streams(alone, name)
            here, there = slice(at[index], at[index] + size[index]), slice(size[index])
            for key in ('order', 'reach', 'position'):
                np.testing.assert_array_equal(together[key][here], single[key][there])
            assert (together['segment'][here] == number + 1).all()
        here, there = slice(at[2], at[2] + size[2]), slice(size[2])
        for key in ('input_group', 'target_group'):
            moved = np.where(alone[key] < 0, -1, alone[key] + at[3] // 4)
            np.testing.assert_array_equal(row[key][here], moved[there])
        at += size


@pytest.mark.parametrize('seed', range(60))
def test_codes_and_frames_of_generated_images(seed):
    """Position i predicts token i + 1, whose code is that of the four patches under it."""
    samples = random_row(seed)
    row = filled(samples)
    representation, pixels = streams(row, 'representation'), streams(row, 'pixels')
    at = 0
    for sample in samples:
        for index, span in enumerate(sample):
            if not isinstance(span, Representation):
                continue
            count = span.height * span.width // 4
            begin, end = at, at + count
            at = end + 1
            groups = row['input_group'][begin + 1 : end + 1]
            assert row['input_group'][begin] == -1 and (row['cells'][begin] == -1).all()
            np.testing.assert_array_equal(row['target_group'][begin:end], groups)
            assert row['target_group'][end] == -1
            np.testing.assert_array_equal(row['representation_weight'][begin : end + 1],
                                          np.arange(count + 1) < count)  # fmt: skip
            # The groups of this image, in raster order.
            patches = (4 * groups[:, None] + np.arange(4)).ravel()
            np.testing.assert_array_equal(patches, patches[0] + np.arange(4 * count))
            drawn = next(s for s in sample[index:] if isinstance(s, Pixels))
            np.testing.assert_array_equal(row['pixels'][patches], drawn.pixels)
            cells = np.argwhere(np.ones((span.height // 2, span.width // 2)))
            np.testing.assert_array_equal(row['cells'][begin + 1 : end + 1], cells)
            # One frame: a token has the mean row and column of its patches.
            under = pixels['position'][patches].reshape(count, 4, 3).mean(1)
            tokens = representation['position'][begin + 1 : end + 1]
            np.testing.assert_array_equal(tokens[:, 1:], under[:, 1:])
    assert not row['representation_weight'][at:].any()
    assert (row['input_group'][at:] == -1).all() and (row['target_group'][at:] == -1).all()


@pytest.mark.parametrize('pool', [1, 2, 4])
def test_codes_find_their_pixels_with_other_spans_between(pool):
    """Two representations first, then the pixels of both, in either order."""
    side, area = max(pool, 2), pool**2
    grids = (side, 2 * side), (side, side)
    for numbers in ((0, 1), (1, 0)):
        row = filled([
            [Representation(*grids[n], n, pool) for n in (0, 1)]
            + [Pixels(*grids[n], image=n, pool=pool) for n in numbers],
        ])  # fmt: skip
        at = [1, 2 * side**2 // area + 2]  # the first token of each
        tokens = streams(row, 'representation')['position'][at, 1:]
        for token, group in zip(tokens, row['input_group'][at]):
            under = streams(row, 'pixels')['position'][area * group : area * (group + 1), 1:]
            np.testing.assert_array_equal(token, under.mean(0))


def test_all_images_of_an_example_share_a_frame():
    """The same place in two images has the same row and column, however far apart they are."""
    spans = [Text([1, 2, 3]), Representation(4, 6), Pixels(4, 6), Text([4]), Vision(4, 6)]
    row = filled([[*spans, Text([5, 6]), Vision(4, 6, image=1)]])
    vision = streams(row, 'vision')['position'][:12]
    pixels = streams(row, 'pixels')['position'][:24]
    tokens = streams(row, 'representation')['position'][1:7]
    np.testing.assert_array_equal(vision[:6, 1:], pixels.reshape(6, 4, 3).mean(1)[:, 1:])
    np.testing.assert_array_equal(vision[:6, 1:], tokens[:, 1:])
    np.testing.assert_array_equal(vision[6:, 1:], vision[:6, 1:])
    assert (vision[6:, 0] > vision[:6, 0]).all() and vision[:, 1:].min() == 3.5


def test_patch_positions_and_coordinates_follow_the_stored_order():
    """The patches that image_ops.patchify stores keep their place in the image."""
    height, width = 4, 6
    image = np.stack([*np.mgrid[:height, :width], np.zeros((height, width), int)], -1)
    stored = image_ops.patchify(image, patch=1)[:, :2]
    row = filled([[Text([1, 2]), Representation(height, width), Pixels(height, width)]])
    position = streams(row, 'pixels')['position'][:24]
    np.testing.assert_array_equal(position[:, 1:] - 2, stored)  # the frame starts after the text
    coords = (stored + 0.5) / (height, width) * 2 - 1
    np.testing.assert_allclose(row['pixel_coords'][:24], coords, atol=1e-6)
    # The encoder gets the same coordinates when it reads the image.
    seen = filled([[Vision(height, width)]])
    np.testing.assert_array_equal(seen['vision_coords'][:24], row['pixel_coords'][:24])


def test_text_counts_up_in_all_three_coordinates():
    row = filled([[Text([7, 8]), Skip(3), Text([9])], [Text([1, 2, 3])]])
    text = streams(row, 'text')
    np.testing.assert_array_equal(text['order'][:6], [0, 1, 5, 0, 1, 2])
    np.testing.assert_array_equal(text['position'][:6], np.repeat(text['order'][:6, None], 3, 1))


def test_skip_keeps_the_positions_of_what_follows():
    image = [Representation(2, 4), Pixels(2, 4)]
    full, skipped = filled([[Text([7, 8, 9]), *image]]), filled([[Skip(3), *image]])
    dropped = filled([image])
    for name in ('representation', 'pixels'):
        here, there = streams(full, name)['position'], streams(skipped, name)['position']
        np.testing.assert_array_equal(here, there)
        assert (streams(dropped, name)['position'][0] == here[0] - 3).all()
    assert (streams(skipped, 'text')['segment'] == 0).all()


def test_padding_belongs_to_no_example():
    row = layout.empty(CAPACITY, CHANNELS)
    assert not row['segment'].any() and (row['order'] == layout.NEVER).all()
    assert (row['reach'] == -1).all() and not row['block'].any()
    batch = {name: row[name][None] for name in ('segment', 'order', 'reach', 'block')}
    assert not np.asarray(visible(batch, batch)).any()


@pytest.mark.parametrize('name', layout.SIZES)
def test_an_example_that_exceeds_a_capacity_is_an_error(name):
    spans = [Text([1, 2]), Vision(2, 2), Representation(2, 2), Pixels(2, 2)]
    exact = dict(zip(layout.SIZES, layout.size(spans).tolist()))
    layout.make_batch([[spans]], exact, CHANNELS)
    with pytest.raises(ValueError, match='does not fit'):
        layout.make_batch([[spans]], exact | {name: exact[name] - 1}, CHANNELS)
    with pytest.raises(ValueError, match='does not fit'):
        layout.make_batch(
            [[spans, spans]], {n: 2 * c - (n == name) for n, c in exact.items()}, CHANNELS
        )


def test_a_representation_needs_its_pixels():
    with pytest.raises(ValueError, match='Pixels span of the same image'):
        filled([[Representation(2, 2, image=1), Pixels(2, 2, image=0)]])


def test_cached_grids_are_read_only():
    """Examples of one size share them: a write would move the patches of all later ones."""
    for kept in (patch_cells(4, 6), group_cells(4, 6, 2), stored_groups(4, 4, 1)):
        with pytest.raises(ValueError, match='read-only'):
            kept += 1
